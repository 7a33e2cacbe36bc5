"""What follows from how the ranks of a Slurm job ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from drl_mpi.errors import UsageError
from drl_mpi.run import requeue
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.launcher import StopSignals
from drl_mpi.run.requeue import (
    Ending,
    check_batch,
    conclude,
    early_signals,
    lock_again,
    most_requeues,
    newest_checkpoint,
    stopped_while_away,
)
from drl_mpi.run.slurm import Allocation

BATCH = {"DRL_MPI_BATCH": f"7:{os.getpid()}"}
GIVEN = Allocation("7", ("a", "b"), (2, 1), None, 0)


class Ended:
    """A run folder, and a scontrol that notes what it was asked for."""

    def __init__(self, tmp_path, programs):
        self.asked = tmp_path / "asked"
        self.folder = RunFolder(tmp_path / "run")
        self.folder.checkpoints.mkdir(parents=True)
        self._programs = programs
        self.is_now("RUNNING", "None")

    def is_now(self, state, reason, more="Requeue=1"):
        """What scontrol tells of the job; what else it is asked for it notes."""
        told = f"JobId=7 JobName=impala {more} JobState={state} Reason={reason} Comment=Reason=no"
        self._programs(
            "scontrol",
            f'case "$*" in "--oneliner show job 7") echo "{told}";; *) echo "$*" >> {self.asked};; '
            "esac",
        )

    def save(self, frames):
        (self.folder.checkpoints / f"frames-{frames:012d}.h5").touch()

    def requeued(self, name="7"):
        return self.asked.exists() and self.asked.read_text() == f"requeue {name}\n"

    def conclude(self, code, before=None, given=GIVEN, variables=BATCH, began=True):
        return conclude(given, Ending(code, before, began), self.folder, variables)


@pytest.fixture
def ended(tmp_path, programs, monkeypatch):
    monkeypatch.setattr(requeue, "KILLED_WITHIN_S", 0.0)
    monkeypatch.setattr(requeue, "PAUSE_S", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    yield Ended(tmp_path, programs)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("code", [75, 1, 137])
def test_what_was_interrupted_and_has_made_progress_goes_back(ended, code, capsys):
    ended.save(10)
    before = newest_checkpoint(ended.folder)
    ended.save(20)
    assert ended.conclude(code, before) == code
    assert ended.requeued()
    assert "frames-000000000020.h5: job 7 goes back to the queue" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 2])
def test_success_and_wrong_usage_do_not(ended, code):
    ended.save(20)
    assert ended.conclude(code) == code
    assert not ended.asked.exists()


@pytest.mark.parametrize("code", [75, 1])
def test_nor_what_the_user_stopped(ended, code):
    """Whatever signals came before or after."""
    ended.save(20)
    ended.folder.stop.touch()
    ended.folder.stop_signal.touch()
    assert ended.conclude(code) == code
    assert not ended.asked.exists()


@pytest.mark.parametrize(
    ("restarts", "found", "away"),
    [(1, "STOP", True), (1, "STOP.signal", False), (0, "STOP", False), (1, None, False)],
)
def test_a_stop_touched_while_the_job_waits_is_the_users(ended, restarts, found, away):
    """Beside the one that Slurm's warning has left."""
    ended.folder.stop_signal.touch()
    if found:
        (ended.folder.path / found).touch()
    given = Allocation("7", ("a",), (2,), None, restarts)
    assert stopped_while_away(given, ended.folder) is away


def test_nor_a_job_inside_somebody_elses_script(ended, capsys):
    """A notebook's, or a command of an interactive allocation: the Slurm job is not ours."""
    ended.save(20)
    for variables, said in (
        ({}, ""),
        ({"DRL_MPI_BATCH": f"6:{os.getpid()}"}, ""),  # of the job that submitted this one
        ({"DRL_MPI_BATCH": "7:1"}, "its script is process 1, this is"),
    ):
        check_batch(GIVEN, variables)
        assert ended.conclude(75, variables=variables) == 75
        assert not ended.asked.exists()
        told = capsys.readouterr().err
        assert said in told
        assert bool(said) == bool(told)


def test_nor_what_makes_no_progress(ended, capsys):
    ended.save(20)
    before = newest_checkpoint(ended.folder)
    assert ended.conclude(1, before) == 1
    assert not ended.asked.exists()
    assert "no checkpoint since the start" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "reason", "goes"),
    [
        ("RUNNING", "None", True),
        ("COMPLETING", "None", False),
        ("CANCELLED", "None", False),
        ("PENDING", "BeginTime", False),
        ("COMPLETING", "TimeLimit", True),
    ],
)
def test_a_cancelled_job_is_not_brought_back(ended, state, reason, goes, capsys):
    """Slurm would do it; and what it requeues itself needs no help."""
    ended.save(20)
    ended.is_now(state, reason)
    assert ended.conclude(75) == 75
    assert ended.requeued() is goes
    assert (f"job 7 is {state} ({reason})" in capsys.readouterr().err) is not goes


@pytest.mark.parametrize(
    ("restarts", "variables", "goes"),
    [
        (99, {}, True),
        (100, {}, False),
        (2, {"MAX_REQUEUES": "3"}, True),
        (3, {"MAX_REQUEUES": "3"}, False),
        (0, {"MAX_REQUEUES": "0"}, False),
    ],
)
def test_only_so_often(ended, restarts, variables, goes):
    ended.save(20)
    given = Allocation("7", ("a",), (2,), None, restarts)
    assert ended.conclude(75, given=given, variables=BATCH | variables) == 75
    assert ended.requeued() is goes


def test_a_cap_that_is_no_number_is_refused(ended):
    ended.save(20)
    with pytest.raises(UsageError, match="MAX_REQUEUES='often'; allowed: 0 or more"):
        most_requeues({"MAX_REQUEUES": "often"})


def test_a_site_without_requeue_is_told_what_to_do(ended, programs, capsys):
    programs(
        "scontrol",
        'case "$1" in --oneliner) echo JobId=7 JobState=RUNNING Reason=None;; '
        "*) echo Requeue is disabled >&2; exit 1;; esac",
    )
    ended.save(20)
    assert ended.conclude(75) == 75
    assert "Requeue is disabled; submit it again" in capsys.readouterr().err


def test_the_job_waits_for_slurm_to_end_it(ended):
    """A script that is gone before could be taken for the job's own end."""
    code = (
        "import os, sys; from drl_mpi.run import requeue, slurm\n"
        "from drl_mpi.run.folder import RunFolder\n"
        "given = slurm.Allocation('7', ('a',), (1,), None, 0)\n"
        "requeue.conclude(given, requeue.Ending(75, None), RunFolder(sys.argv[1]),"
        " {'DRL_MPI_BATCH': f'7:{os.getpid()}'})"
    )
    ended.save(20)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(ended.folder.path)], stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 30
        while not ended.requeued():
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.2)
        assert child.poll() is None
        child.terminate()
        assert child.wait(10) == -signal.SIGTERM
    finally:
        child.kill()
        child.communicate()


def test_the_newest_checkpoint_is_the_one_with_most_frames(ended):
    assert newest_checkpoint(ended.folder) is None
    ended.save(300)
    ended.save(20)
    (ended.folder.checkpoints / "frames-000000000900.parts").mkdir()
    assert newest_checkpoint(ended.folder) == "frames-000000000300.h5"
    assert newest_checkpoint(RunFolder(ended.folder.path / "nowhere")) is None


def test_a_preempted_job_goes_back_without_a_new_checkpoint(ended):
    """Slurm ends its ranks first, and would have brought it back."""
    ended.save(20)
    before = newest_checkpoint(ended.folder)
    ended.is_now("RUNNING", "None", "PreemptTime=None")
    assert ended.conclude(1, before) == 1
    assert not ended.asked.exists()
    ended.is_now("RUNNING", "None", "PreemptTime=2030-01-01T10:00:00")
    assert ended.conclude(1, before) == 1
    assert ended.requeued()


def test_nor_needs_one_that_was_warned_before_its_ranks_were_started(ended):
    assert ended.conclude(75, began=False) == 75
    assert ended.requeued()


def test_a_task_of_an_array_goes_back_alone(ended):
    """The number of the last one is the array's, too: all of it would be requeued."""
    ended.save(20)
    ended.is_now("RUNNING", "None", "ArrayJobId=7 ArrayTaskId=3")
    other = "JobId=5 ArrayJobId=7 ArrayTaskId=1 JobState=PENDING Reason=Resources"
    script = (ended.asked.parent / "bin" / "scontrol").read_text()
    changed = script.replace('echo "JobId', f'echo "{other}"; echo "JobId')
    (ended.asked.parent / "bin" / "scontrol").write_text(changed)
    stale = {"SLURM_ARRAY_JOB_ID": "4", "SLURM_ARRAY_TASK_ID": "2"}  # where it was submitted
    assert ended.conclude(75, variables=BATCH | stale) == 75
    assert ended.requeued("7_3")


@pytest.mark.parametrize(("busy", "goes"), [(23, True), (24, False)])
def test_a_busy_controller_is_asked_again(ended, programs, busy, goes):
    ended.save(20)
    count = ended.asked.parent / "count"
    programs(
        "scontrol",
        f"echo x >> {count}\n"
        f"test $(wc -l < {count}) -le {busy} && echo Socket timed out on send/recv >&2 && exit 1\n"
        'case "$1" in --oneliner) echo "JobId=7 JobState=RUNNING Reason=None";; '
        f'*) echo "$*" >> {ended.asked};; esac',
    )
    assert ended.conclude(75) == 75
    assert ended.requeued() is goes


def test_one_that_runs_again_elsewhere_is_left_alone(ended, capsys):
    """Slurm gave up a node that goes on all the same."""
    ended.save(20)
    ended.is_now("RUNNING", "None", "Restarts=1")
    assert ended.conclude(75) == 75
    assert not ended.asked.exists()
    assert "runs again already" in capsys.readouterr().err


@pytest.fixture
def locked(ended):
    """The run folder, in use by another process."""
    code = (
        "import sys, time; from drl_mpi.run.folder import RunFolder\n"
        "RunFolder(sys.argv[1]).lock()\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(ended.folder.path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout.readline() == "locked\n"
    yield other
    other.communicate()


def test_a_job_that_came_back_waits_for_its_folder(ended, locked, monkeypatch, capsys):
    signals, back = StopSignals(), Allocation("7", ("a",), (2,), None, 1)
    monkeypatch.setattr(requeue, "LOOK_S", 0.01)
    monkeypatch.setattr(requeue, "LOCKED_S", 0.1)
    with pytest.raises(UsageError, match="in use by a job that is still running"):
        lock_again(GIVEN, ended.folder, signals)
    assert not lock_again(back, ended.folder, signals)
    assert capsys.readouterr().err.count("Job 7 came back: it waits") == 1
    monkeypatch.setattr(requeue, "LOCKED_S", 60.0)
    signals.came = 1
    assert not lock_again(back, ended.folder, signals), "Slurm does not wait"
    signals.came = 0
    locked.communicate()
    assert lock_again(back, ended.folder, signals)
    ended.folder.unlock()


def test_without_scontrol_the_code_is_the_jobs(ended, monkeypatch, capsys):
    ended.save(20)
    monkeypatch.setenv("PATH", "")
    assert ended.conclude(75) == 75
    assert "No such file" in capsys.readouterr().err


def test_a_warning_before_the_ranks_start_is_kept():
    before = signal.getsignal(signal.SIGUSR2)
    try:
        assert early_signals({}).came == 0
        assert signal.getsignal(signal.SIGUSR2) == before, "not of a command in a shell"
        signals = early_signals(BATCH)
        signal.raise_signal(signal.SIGUSR2)
        assert signals.came == 1
        assert early_signals(BATCH | {"DRL_MPI_WARNED": "yes"}).came == 1
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        signal.raise_signal(signal.SIGUSR2)
        assert early_signals(BATCH).came == 1, "held back by slurm/common.sh"
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        signal.signal(signal.SIGUSR2, before)
