"""The cluster in a box: it does what tests of jobs rely on, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.cluster.box import Box
from tests.cluster.network import Machine, Network

HELLO = Path(__file__).with_name("hello.py")
MPIRUN = Path(sys.executable).with_name("mpirun")
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


# What it leaves behind


class Traces:
    """What the boxes of one test leave on this machine."""

    def __init__(self, root: Path, pid: int):
        """Traces of boxes with files in ``root`` that process ``pid`` started."""
        self._root = str(root)
        self._link = f"box{pid}-"
        self._namespaces: set[int] = set()

    def found(self) -> list[str]:
        """All there are now; namespaces of processes found once are searched from then on."""
        links = [path.name for path in Path("/sys/class/net").glob(f"{self._link}*")]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        processes = []
        for process in psutil.process_iter(["cmdline", "environ", "status"]):
            known = process.info  # entries are None where access was denied
            words = [*(known["cmdline"] or []), *(known["environ"] or {}).values()]
            with contextlib.suppress(OSError):
                namespace = Path(f"/proc/{process.pid}/ns/net").stat().st_ino
                ours = any(self._root in word for word in words)
                if ours and namespace != Path("/proc/self/ns/net").stat().st_ino:
                    self._namespaces.add(namespace)
                if ours or namespace in self._namespaces:
                    processes.append(f"process {process.pid}: {known['cmdline']}")
        return [*links, *(mount for mount in mounts if self._root in mount), *processes]


def until(condition: Callable[[], bool], timeout: float = 60.0) -> None:
    """Waits for a condition."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout:g} s"
        time.sleep(0.1)


def test_leaves_nothing_when_left(root: Path) -> None:
    traces = Traces(root, os.getpid())
    with Box(root, nodes=2) as box:
        job = box.sbatch("--nodes=2", "--wrap=srun sleep 1000", cwd=root)
        box.wait(job, "RUNNING")
        until(lambda: "sleep 1000" in box.run_on("node2", ["ps", "-eo", "args"]).stdout)
        assert len(traces.found()) > 10
    assert traces.found() == []


def test_leaves_nothing_when_it_fails_half_way(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces = Traces(root, os.getpid())
    join = Network.join
    seen: list[str] = []

    def interrupted(network: Network, machine: Machine, number: int) -> None:
        join(network, machine, number)
        if machine.name == "node2":
            seen.extend(traces.found())
            raise KeyboardInterrupt

    monkeypatch.setattr(Network, "join", interrupted)
    with pytest.raises(KeyboardInterrupt), Box(root, nodes=2):
        pass
    assert any("slurmd" in trace for trace in seen)
    assert traces.found() == []


def test_says_at_once_why_it_does_not_start(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.cluster.box._PARTITIONS", "PartitionName=main Nodes=nobody")
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"ended on controller[\s\S]*nobody"), Box(root):
        pass
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_by_hand_leaves_nothing_after_a_signal(root: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.box", "--nodes=1"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(root)},
    )
    traces = Traces(root, process.pid)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"export SLURM_CONF={root}")
        assert len(traces.found()) > 5
    finally:
        process.send_signal(number)
        process.communicate(timeout=60)
    until(lambda: traces.found() == [])  # after SIGKILL it is the kernel that cleans, a bit later


# What it does


def test_a_job_over_two_nodes(box: Box, tmp_path: Path) -> None:
    job = box.sbatch("--nodes=2", "--wrap=srun hostname", cwd=tmp_path)
    box.wait(job)
    nodes = box.nodes_of(job)
    assert len(nodes) == 2
    assert sorted(box.output(job).split()) == nodes
    assert {box.run_on(node, ["hostname", "-i"]).stdout.strip() for node in nodes} == {
        box.address(node) for node in nodes
    }


def test_nodes_share_files_but_no_memory_and_no_processes(box: Box, tmp_path: Path) -> None:
    touched = "touch /dev/shm/mine file; sleep 1000 & sleep 1000"
    job = box.sbatch("--nodelist=node1", f"--wrap={touched}", cwd=tmp_path)
    box.wait(job, "RUNNING")
    look = ["sh", "-c", "ls /dev/shm file; ps -eo args; hostname"]
    until(lambda: box.run_on("node1", look, cwd=tmp_path).stdout.count("sleep 1000") > 1)
    seen = {name: box.run_on(name, look, cwd=tmp_path).stdout.split() for name in box.names[:2]}
    assert {"mine", "file", "1000", "node1"} <= set(seen["node1"])
    assert {"mine", "file", "1000", "node2"} & set(seen["node2"]) == {"file", "node2"}


def test_a_refused_job_says_why(box: Box, tmp_path: Path) -> None:
    done = box.try_sbatch("--gpus-per-node=3", "--wrap=true", cwd=tmp_path)
    assert done.returncode != 0
    assert "node configuration is not available" in done.stderr
    with pytest.raises(RuntimeError, match="node configuration is not available"):
        box.sbatch("--gpus-per-node=3", "--wrap=true", cwd=tmp_path)


def test_a_failed_job_is_not_waited_for(box: Box, tmp_path: Path) -> None:
    job = box.sbatch("--wrap=echo reason; exit 3", cwd=tmp_path)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"is FAILED[\s\S]*ExitCode=3:0[\s\S]*reason"):
        box.wait(job, timeout=60.0)
    assert time.monotonic() - start < 50
    assert box.wait(job, "FAILED") == "FAILED"


@pytest.mark.parametrize(
    "launcher", [f"{MPIRUN} --bind-to none", "srun --mpi=pmix"], ids=["mpirun", "srun"]
)
def test_mpi_over_two_nodes(box: Box, tmp_path: Path, launcher: str) -> None:
    sent = {name: box.sent_bytes(name) for name in box.names}
    command = f"--wrap={launcher} {sys.executable} {HELLO}"
    job = box.sbatch("--nodes=2", "--ntasks-per-node=2", command, cwd=tmp_path, env=AS_ROOT)
    box.wait(job)
    first, second = box.nodes_of(job)
    assert sorted(box.output(job).splitlines()) == [
        f"rank {rank} of 4 on {node}" for rank, node in enumerate([first, first, second, second])
    ]
    # In the ring one rank of each node sends to the other node; the rest stays in memory.
    sent = {name: box.sent_bytes(name) - sent[name] for name in box.names}
    assert all(8e6 < sent[name] < 14e6 for name in (first, second)), sent


def test_gpus_are_counted(box: Box, tmp_path: Path) -> None:
    show = "--wrap=srun --ntasks-per-node=1 sh -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES'"
    job = box.sbatch("--nodes=2", "--gpus-per-node=2", show, cwd=tmp_path)
    box.wait(job)
    assert sorted(box.output(job).splitlines()) == [f"{node} 0,1" for node in box.nodes_of(job)]


def test_a_requeued_job_runs_again(box: Box, tmp_path: Path) -> None:
    job = box.sbatch("--wrap=echo run $SLURM_RESTART_COUNT; sleep 1000", "--open-mode=append",
                     cwd=tmp_path)  # fmt: skip
    until(lambda: "run" in box.output(job) if box.state(job) == "RUNNING" else False)
    assert box.restarts(job) == 0
    box.requeue(job)
    assert box.restarts(job) == 1
    until(lambda: "run 1" in box.output(job))


def test_a_job_in_short_preempts_one_in_main(box: Box, tmp_path: Path) -> None:
    low = box.sbatch("--nodes=3", "--exclusive", "--wrap=sleep 1000", cwd=tmp_path)
    box.wait(low, "RUNNING")
    high = box.sbatch("--partition=short", "--exclusive", "--wrap=true", cwd=tmp_path)
    box.wait(high)
    box.wait_restart(low)


def test_a_signal_reaches_the_batch_script(box: Box, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\ntrap 'echo warned; kill $!' USR2\nsleep 1000 &\nwait\nwait\necho ended\n"
    )
    # Slurm looks at time limits every 30 s, so this comes within the first 30 of the 60.
    job = box.sbatch("--time=1", "--signal=B:USR2@60", script, cwd=tmp_path)
    box.wait(job, timeout=120.0)
    assert re.search(r"warned[\s\S]*ended", box.output(job))


def test_an_array_runs_two_at_a_time(box: Box, tmp_path: Path) -> None:
    times = "--wrap=date +%s.%N; sleep 2; date +%s.%N"
    job = box.sbatch("--array=0-3%2", times, cwd=tmp_path)
    assert set(box.states(job)) == {f"{job}_{i}" for i in range(4)}
    box.wait(job)
    spans = [tuple(map(float, box.output(f"{job}_{i}").split())) for i in range(4)]
    assert max(sum(s <= start < e for s, e in spans) for start, _ in spans) == 2


def test_slurm_notices_a_failed_node(box: Box, tmp_path: Path) -> None:
    job = box.sbatch("--wrap=sleep 1000", cwd=tmp_path)
    box.wait(job, "RUNNING")
    (failing,) = box.nodes_of(job)
    box.kill_node(failing)
    box.wait_restart(job, timeout=120.0)
    assert box.nodes_of(job) != [failing]
    box.revive_node(failing)
    assert "slurmd" in box.run_on(failing, ["ps", "-e"]).stdout
    assert "1000" not in box.run_on(failing, ["ps", "-eo", "args"]).stdout


def test_a_node_reported_down_fails_at_once(box: Box, tmp_path: Path) -> None:
    job = box.sbatch("--no-requeue", "--wrap=sleep 1000", cwd=tmp_path)
    box.wait(job, "RUNNING")
    (name,) = box.nodes_of(job)
    box.kill_node(name)
    with pytest.raises(ValueError, match=f"{name} is not a living node"):
        box.run_on(name, ["true"])
    assert not box.node_states()[name].startswith("down")
    box.report_down(name)
    assert box.node_states()[name].startswith("down")
    box.wait(job, "NODE_FAIL")
