"""The batch scripts, submitted as a user submits them."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from tests.cluster.box import Box

ROOT = Path(__file__).parents[2]
CARTPOLE = ["--env", "CartPole-v1", "--envs-per-actor", "8", "--log-seconds", "1"]
"""Small enough for many ranks on few real cores."""
LIMIT_S = 240.0
"""For one job: some 20 s are normal, but the machine may be busy with other things."""


class Run:
    """A submitted job and its run folder."""

    def __init__(self, box: Box, script: str, before: list[str], after: list[str], where: Path):
        """Submits ``slurm/SCRIPT.sh`` with sbatch's options before it, and the job's after it."""
        self.box = box
        self.folder = where / "run"
        self.where = where
        env = {"DRL_MPI_HOME": str(ROOT), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        variables = [word for word in before if not word.startswith("-")]
        env |= dict(word.split("=", 1) for word in variables)
        options = [word for word in before if word.startswith("-")]
        named = [] if script == "sweep" else ["--run-dir", str(self.folder)]
        self.job = box.sbatch(
            *options, ROOT / "slurm" / f"{script}.sh", *after, *named, cwd=where, env=env
        )

    @property
    def output(self) -> str:
        return self.box.output(self.job)

    @property
    def done(self) -> bool:
        return (self.folder / "DONE").exists()

    def finish(self) -> None:
        """Waits for success."""
        self.box.wait(self.job, timeout=LIMIT_S)
        assert self.done, self.output

    def until(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < end, f"{what}\n{self.output}"
            time.sleep(0.05)

    def until_progress(self) -> None:
        """Waits for the first row of progress.csv."""
        self.until(lambda: (self.folder / "progress.csv").exists() and self.rows(), "progress")

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").glob("frames-*.h5"))

    def rows(self) -> list[dict[str, float]]:
        with (self.folder / "progress.csv").open() as file:
            return [
                {name: float(row[name]) for name in ("frames", "updates", "version", "time_s")}
                for row in csv.DictReader(file)
            ]

    def roles(self) -> dict[str, set[str]]:
        """Host -> roles there."""
        found: dict[str, set[str]] = {}
        for line in (self.folder / "layout.txt").read_text().splitlines()[1:]:
            _, role, host, *_ = line.split()
            found.setdefault(host, set()).add(role)
        return found

    def continuous(self) -> None:
        """Nothing is told twice and nothing goes back, however often the job was interrupted."""
        rows = self.rows()
        assert len(rows) > 1
        for name in ("frames", "updates", "version", "time_s"):
            column = [row[name] for row in rows]
            assert column == sorted(column), (name, column)
        frames = [row["frames"] for row in rows]
        assert len(set(frames)) == len(frames), frames


@pytest.fixture
def submit(box: Box, tmp_path: Path) -> Callable[..., Run]:
    """``submit(script, sbatch's options, the job's options)``: a ``Run``."""

    def start(script: str, before: list[str], after: list[str]) -> Run:
        return Run(box, script, before, after, tmp_path)

    return start


Submit = Callable[..., Run]

TWO_NODES = ["--nodes=2", "--ntasks-per-node=2"]


@pytest.mark.parametrize("launcher", ["mpirun", "srun"])
def test_impala_trains_on_two_nodes(submit: Submit, launcher: str) -> None:
    run = submit(
        "impala", [f"LAUNCHER={launcher}", *TWO_NODES], [*CARTPOLE, "--total-frames", "20000"]
    )
    run.finish()
    first, second = run.box.nodes_of(run.job)
    assert run.roles() == {first: {"learner", "actor"}, second: {"actor"}}
    assert f"+ {launcher}" in run.output.replace(str(Path(sys.executable).parent) + "/", "")
    assert "finished: " in run.output
    assert json.loads((run.folder / "DONE").read_text())["frames"] >= 20_000


def test_the_doctor_examines_the_whole_allocation(submit: Submit) -> None:
    run = submit("test", ["--nodes=2", "--ntasks-per-node=2"], [])
    run.box.wait(run.job, timeout=LIMIT_S)
    first, second = run.box.nodes_of(run.job)
    assert f"4 on 2 hosts: 2 on {first}, 2 on {second}" in run.output
    assert "GB/s between hosts (1 pair)" in run.output
    assert "all 2 hosts see the same files" in run.output
    assert ", 0 fail" in run.output


def test_actors_see_no_gpu(submit: Submit, tmp_path: Path) -> None:
    """The batch script and the learner, which also look at the environment, see those of a node."""
    seen = tmp_path / "seen"
    seen.mkdir()
    run = submit(
        "impala",
        ["--gpus-per-node=2", *TWO_NODES, f"SEEN={seen}", f"PYTHONPATH={Path(__file__).parent}"],
        [*CARTPOLE[2:], "--env", "seeing:Seeing-v0", "--total-frames", "4000"],
    )
    run.finish()
    assert "Slurm gave 2 GPUs on this node, but torch sees none" in run.output
    found = {path.name: path.read_text() for path in seen.iterdir()}
    assert found == {"script": "0,1", "0": "0,1", "1": "", "2": "", "3": ""}


def test_gorilla_trains_with_servers_on_two_nodes(submit: Submit) -> None:
    run = submit(
        "gorilla",
        ["--nodes=2", "--ntasks-per-node=3"],
        [
            *CARTPOLE, "--total-frames", "6000", "--servers", "2", "--learners", "2",
            "--replay-capacity", "2000", "--replay-start", "500",
        ],
    )  # fmt: skip
    run.finish()
    everything = {"learner", "actor", "server"}
    assert run.roles() == dict.fromkeys(run.box.nodes_of(run.job), everything)


def test_slurms_warning_saves_requeues_and_resumes(submit: Submit) -> None:
    """The signal that ``--signal=B:USR2@300`` asks for, sent by hand: Slurm looks every 30 s."""
    run = submit("impala", TWO_NODES, [*CARTPOLE, "--total-frames", "100000"])
    run.until_progress()
    run.box.client("scancel", "--batch", "--signal=USR2", str(run.job))
    warned = time.monotonic()
    run.until(lambda: run.box.state(run.job) != "RUNNING", "the end after the warning")
    assert time.monotonic() - warned < 20.0  # under a second on a quiet machine
    (saved,) = run.checkpoints()
    assert "stopping: " in run.output
    assert f"exit 75, newest checkpoint {saved}: job {run.job} goes back" in run.output
    assert not run.done
    run.box.wait_restart(run.job, 1, LIMIT_S)
    run.finish()
    assert f"going on from {run.folder}/checkpoints/{saved}" in run.output
    run.continuous()


@pytest.mark.parametrize("when", ["the script is a shell", "Python starts"])
def test_a_warning_while_it_loads_is_not_lost(submit: Submit, tmp_path: Path, when: str) -> None:
    """The shell looks whether its Python can import the package, then hands over to it."""
    slow = tmp_path / "slow-python"
    begun = tmp_path / "begun"
    slow.write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, sys, time\n"
        f"begun = pathlib.Path({str(begun)!r})\n"
        f"if (sys.argv[1] == '-c') is {when == 'the script is a shell'} and not begun.exists():\n"
        "    begun.touch()\n"
        "    time.sleep(3)\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
    )
    slow.chmod(0o755)
    run = submit("impala", [f"PYTHON={slow}", *TWO_NODES], [*CARTPOLE, "--total-frames", "20000"])
    run.until(begun.exists, "the beginning")
    run.box.client("scancel", "--batch", "--signal=USR2", str(run.job))
    run.box.wait_restart(run.job, 1, LIMIT_S)
    assert "Slurm's warning came before the ranks were started" in run.output
    assert not run.checkpoints()
    run.finish()


def test_a_requeued_job_resumes(submit: Submit) -> None:
    run = submit(
        "impala",
        TWO_NODES,
        [*CARTPOLE, "--total-frames", "80000", "--checkpoint-minutes", "0.03"],
    )
    run.until(run.checkpoints, "a checkpoint")
    run.box.requeue(run.job)
    run.finish()
    assert "going on from" in run.output
    run.continuous()


def test_a_killed_node_ends_in_a_requeue_and_a_resumed_run(submit: Submit) -> None:
    run = submit(
        "impala",
        TWO_NODES,
        [*CARTPOLE, "--total-frames", "80000", "--checkpoint-minutes", "0.03"],
    )
    run.until(lambda: len(run.checkpoints()) == 2, "two checkpoints")
    nodes = run.box.nodes_of(run.job)
    run.box.kill_node(nodes[1])
    run.box.report_down(nodes[1])
    run.box.wait_restart(run.job, 1, LIMIT_S)
    run.finish()
    assert nodes[1] not in run.box.nodes_of(run.job)
    assert "going on from" in run.output
    run.continuous()


def test_who_touches_stop_is_not_overruled(submit: Submit) -> None:
    run = submit("impala", ["--ntasks-per-node=2"], [*CARTPOLE, "--total-frames", "10000000"])
    run.until_progress()
    (run.folder / "STOP").touch()
    run.box.wait(run.job, "FAILED", timeout=LIMIT_S)
    assert run.box.record(run.job)["ExitCode"] == "75:0"
    assert run.box.restarts(run.job) == 0
    assert len(run.checkpoints()) == 1


def test_a_stop_touched_while_it_waits_is_obeyed(submit: Submit) -> None:
    """Beside the one that Slurm's warning left."""
    run = submit("impala", TWO_NODES, [*CARTPOLE, "--total-frames", "10000000"])
    run.until_progress()
    run.box.client("scancel", "--batch", "--signal=USR2", str(run.job))
    run.until(lambda: run.box.state(run.job) == "PENDING", "the requeue")
    (run.folder / "STOP").touch()
    run.box.wait_restart(run.job, 1, LIMIT_S)
    run.box.wait(run.job, "FAILED", timeout=LIMIT_S)
    assert run.box.record(run.job)["ExitCode"] == "75:0"
    assert f"{run.folder}/STOP is there: not going on" in run.output
    assert len(run.checkpoints()) == 1


@pytest.fixture
def grace(box: Box) -> Iterator[None]:
    """Preempted jobs are told, by SIGTERM to their ranks, and have some seconds."""
    box.scontrol("update", "PartitionName=main", "GraceTime=30")
    yield
    box.scontrol("update", "PartitionName=main", "GraceTime=0")


@pytest.mark.usefixtures("grace")
@pytest.mark.parametrize("launcher", ["mpirun", "srun"])
def test_a_preempted_job_comes_back(submit: Submit, launcher: str) -> None:
    """Whether its ranks had the time to save or not: this is before the first checkpoint."""
    run = submit(
        "impala", [f"LAUNCHER={launcher}", *TWO_NODES], [*CARTPOLE, "--total-frames", "60000"]
    )
    run.until_progress()
    every = f"--nodes={len(run.box.node_states())}"
    urgent = run.box.sbatch(
        "--partition=short", every, "--exclusive", "--wrap=sleep 1", cwd=run.where
    )
    run.box.wait(urgent, timeout=LIMIT_S)
    run.box.wait_restart(run.job, 1, LIMIT_S)
    run.finish()
    run.continuous()


@pytest.mark.parametrize("launcher", ["mpirun", "srun"])
def test_where_it_was_submitted_leaves_no_traces(submit: Submit, launcher: str) -> None:
    """In a task of an array, in a shell of srun's or on a rank; and variables are not passed on."""
    inside = ["SLURM_ARRAY_JOB_ID=1", "SLURM_ARRAY_TASK_ID=0", "PMIX_RANK=0", "PMIX_NAMESPACE=x"]
    inside += ["PMI_RANK=0", "PMI_SIZE=1", "OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=1"]
    inside += ["SLURM_STEP_ID=0", "SLURM_STEP_NUM_TASKS=1", "DRL_MPI_BATCH=1:1"]
    names = [word.partition("=")[0] for word in inside]
    own = ["LAUNCHER", "DRL_MPI_HOME", "PYTHON", "OMP_NUM_THREADS", "PATH", "PYTHONPATH"]
    run = submit(
        "impala",
        [f"LAUNCHER={launcher}", *inside, f"--export={','.join(names + own)}", *TWO_NODES],
        [*CARTPOLE, "--total-frames", "60000"],
    )
    run.until_progress()
    run.box.client("scancel", "--batch", "--signal=USR2", str(run.job))
    run.box.wait_restart(run.job, 1, LIMIT_S)
    run.finish()
    assert len(run.roles()) == 2


def test_a_cancelled_job_stays_away(submit: Submit) -> None:
    run = submit(
        "impala",
        TWO_NODES,
        [*CARTPOLE, "--total-frames", "1e9", "--checkpoint-minutes", "0.02"],
    )
    run.until(run.checkpoints, "a checkpoint")
    run.box.cancel(run.job)
    run.box.wait(run.job, "CANCELLED")
    assert run.box.restarts(run.job) == 0
    assert "it is not requeued from here" in run.output


def test_a_sweep_is_an_array_with_a_cap(submit: Submit, tmp_path: Path) -> None:
    run = submit(
        "sweep",
        ["--array=0-3%2", "--ntasks-per-node=2", "GAMES=CartPole-v1 Acrobot-v1", "SEEDS=1 2"],
        ["--envs-per-actor", "8", "--total-frames", "4000", "--log-seconds", "1"],
    )
    run.box.wait(run.job, timeout=LIMIT_S)
    assert sorted(path.parent.name for path in (tmp_path / "runs").glob("*/DONE")) == [
        "impala-Acrobot-v1-seed1",
        "impala-Acrobot-v1-seed2",
        "impala-CartPole-v1-seed1",
        "impala-CartPole-v1-seed2",
    ]


def test_one_task_of_a_sweep_goes_back_alone(submit: Submit, tmp_path: Path) -> None:
    """The last one, whose number is the whole array's."""
    run = submit(
        "sweep",
        ["--array=0-1", "--ntasks-per-node=2", "GAMES=CartPole-v1", "SEEDS=1 2"],
        ["--envs-per-actor", "8", "--total-frames", "1e9", "--checkpoint-minutes", "0.02"],
    )
    run.until(lambda: len({*tmp_path.glob("runs/*/checkpoints/*.h5")}) >= 2, "checkpoints of both")
    for seed in (1, 2):
        saved = tmp_path / f"runs/impala-CartPole-v1-seed{seed}/checkpoints"
        run.until(lambda saved=saved: [*saved.glob("*.h5")], "a checkpoint")  # type: ignore[misc]
    run.box.client("scancel", "--batch", "--signal=USR2", f"{run.job}_1")
    run.until(lambda: run.box.restarts(f"{run.job}_1") == 1, "the restart")
    assert run.box.state(f"{run.job}_0") == "RUNNING"
    assert run.box.restarts(f"{run.job}_0") == 0


def test_a_task_that_a_sweep_does_not_have_says_so(submit: Submit) -> None:
    run = submit("sweep", ["--array=4", "--ntasks-per-node=2", "GAMES=a b", "SEEDS=1 2"], [])
    run.box.wait(run.job, "FAILED", timeout=LIMIT_S)
    (line,) = run.box.output(f"{run.job}_4").splitlines()
    assert "games (2) x seeds (2) are tasks 0 to 3, and this is task 4" in line
    assert "--array=0-3%4" in line


def test_from_another_folder_it_says_what_to_do(box: Box, tmp_path: Path) -> None:
    job = box.sbatch("--ntasks-per-node=2", ROOT / "slurm" / "impala.sh", cwd=tmp_path)
    box.wait(job, "FAILED", timeout=LIMIT_S)
    (line,) = box.output(job).splitlines()
    assert f"no drl_mpi in {tmp_path}: submit from its folder, or export DRL_MPI_HOME" in line


def test_srun_without_pmix_is_refused(box: Box, tmp_path: Path) -> None:
    command = f"srun --mpi=none {sys.executable} {ROOT / 'jobs' / 'impala.py'}"
    job = box.sbatch("--nodes=2", "--ntasks-per-node=2", f"--wrap={command}", cwd=tmp_path)
    box.wait(job, "FAILED", timeout=LIMIT_S)
    lines = [line for line in box.output(job).splitlines() if line.startswith("impala.py: ")]
    assert len(lines) == 1, box.output(job)
    assert "srun started 4 tasks that do not know of one another" in lines[0]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (["--ntasks-per-node=1"], [], "every learner needs an actor"),
        (TWO_NODES, ["--env", "Nowhere-v9"], "Nowhere-v9"),
        (["LAUNCHER=magic", *TWO_NODES], [], "LAUNCHER='magic'; allowed: mpirun, srun"),
        (["PYTHON=/nowhere/python", *TWO_NODES], [], "no Python at /nowhere/python"),
    ],
)
def test_what_cannot_work_is_one_line(
    submit: Submit, before: list[str], after: list[str], said: str
) -> None:
    run = submit("impala", before, [*CARTPOLE, *after])
    run.box.wait(run.job, "FAILED", timeout=LIMIT_S)
    assert run.box.record(run.job)["ExitCode"] == "2:0"
    lines = [line for line in run.output.splitlines() if not line.startswith("job ")]
    assert len(lines) == 1, run.output
    assert said in lines[0]


def test_an_unwritable_run_folder_is_one_line(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    run = submit("impala", TWO_NODES, CARTPOLE)
    run.box.wait(run.job, "FAILED", timeout=LIMIT_S)
    assert run.box.record(run.job)["ExitCode"] == "2:0"
    lines = [line for line in run.output.splitlines() if not line.startswith("job ")]
    assert len(lines) == 1, run.output
    assert str(run.folder) in lines[0]


def test_a_wrong_partition_is_refused(box: Box) -> None:
    done = box.try_sbatch("--partition=nowhere", ROOT / "slurm" / "impala.sh")
    assert done.returncode != 0
    assert "invalid partition specified: nowhere" in done.stderr


def test_parameters_cross_the_network_once_per_node(box: Box, tmp_path: Path) -> None:
    """With five actors there. And in lock-step no bit depends on where ranks stand."""
    options = [
        *CARTPOLE, "--actors", "9", "--lockstep", "--precision", "fp32", "--core", "lstm",
        "--unroll-length", "5", "--batch-size", "72", "--replay-fraction", "0",
        "--total-frames", "7200", "--checkpoint-unrolls", "20",
    ]  # fmt: skip
    runs = []
    for nodes, name in ((2, "spread"), (1, "together")):
        (tmp_path / name).mkdir()
        run = Run(
            box,
            "impala",
            [f"--nodes={nodes}", f"--ntasks-per-node={10 // nodes}"],
            options,
            tmp_path / name,
        )
        run.until(lambda run=run: run.box.nodes_of(run.job), "nodes")
        learner = run.box.nodes_of(run.job)[0]
        before = run.box.sent_bytes(learner)
        run.finish()
        runs.append((run, run.box.sent_bytes(learner) - before))
    (spread, sent), (together, silent) = runs
    with h5py.File(max((spread.folder / "checkpoints").glob("frames-*.h5"))) as file:
        arrays = dict(_arrays(file))
        size = sum(array.nbytes for name, array in arrays.items() if name.startswith("/model/"))
    versions = spread.rows()[-1]["version"]
    assert versions == 20
    assert versions * size < sent < 1.2 * versions * size + 5e6, (sent, versions * size)
    assert silent < 5e6
    with h5py.File(max((together.folder / "checkpoints").glob("frames-*.h5"))) as file:
        for name, array in _arrays(file):
            if not name.startswith(("/session", "/config")):
                assert np.array_equal(array, arrays[name], equal_nan=True), name


def _arrays(group: h5py.Group) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """Every dataset below a group: (name, array)."""
    for item in group.values():
        if isinstance(item, h5py.Group):
            yield from _arrays(item)
        elif item.dtype.kind != "O":
            yield item.name, np.asarray(item)
