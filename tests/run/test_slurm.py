"""A Slurm allocation as its variables tell it, and what follows from how the ranks ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drl_mpi.errors import UsageError
from drl_mpi.run import slurm
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.slurm import Allocation, allocation, conclude, launch_command, newest_checkpoint

ROOT = Path(__file__).parents[2]
ONE = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "cloud",
    "SLURM_TASKS_PER_NODE": "3",
}
BATCH = {"DRL_MPI_BATCH": str(os.getpid())}
GIVEN = Allocation("7", ("a", "b"), (2, 1), None, 0)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """``programs(name, script)``: a program that is found before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return make


# -- what was given -------------------------------------------------------------------------------


def test_outside_an_allocation_there_is_none():
    assert allocation({}) is None
    assert allocation({"SLURM_JOB_ID": "7"}) is None


def test_one_host():
    assert allocation(ONE) == Allocation("7", ("cloud",), (3,), None, 0)


def test_tasks_of_srun_without_pmix_are_refused():
    with pytest.raises(UsageError, match="srun started 3 tasks that do not know of one another"):
        allocation(ONE | {"SLURM_STEP_NUM_TASKS": "3"})
    assert allocation(ONE | {"SLURM_STEP_NUM_TASKS": "1"}).ranks == 3  # an interactive step


def test_gpus_that_torch_does_not_see_are_told():
    assert slurm.unseen_gpus(0, {}) == ""
    assert slurm.unseen_gpus(0, {"SLURM_GPUS_ON_NODE": "0"}) == ""
    assert slurm.unseen_gpus(2, {"SLURM_GPUS_ON_NODE": "2"}) == ""
    assert "Slurm gave 2 GPUs" in slurm.unseen_gpus(0, {"SLURM_GPUS_ON_NODE": "2"})


def test_a_task_of_an_array_is_named_as_one():
    """The number of the last task is the array's, too: all of it would be requeued."""
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    assert allocation(ONE | array).job == "7_2"


@pytest.mark.parametrize(
    ("restarts", "found", "away"),
    [(1, b"", True), (1, b"by a signal\n", False), (0, b"", False), (1, None, False)],
)
def test_a_stop_touched_while_the_job_waits_is_the_users(ended, restarts, found, away):
    if found is not None:
        ended.folder.stop.write_bytes(found)
    given = Allocation("7", ("a",), (2,), None, restarts)
    assert slurm.stopped_while_away(given, ended.folder) is away


def test_many_hosts(programs):
    programs("scontrol", 'test "$*" = "show hostnames n[1-3],m4" && printf "n1\\nn2\\nn3\\nm4\\n"')
    given = allocation(
        ONE
        | {
            "SLURM_JOB_NODELIST": "n[1-3],m4",
            "SLURM_TASKS_PER_NODE": "4(x3),2",
            "SLURM_CPUS_PER_TASK": "2",
            "SLURM_RESTART_COUNT": "5",
        }
    )
    assert given == Allocation(
        "7", ("n1", "n2", "n3", "m4"), (4, 4, 4, 2), 2, 5
    )  # fmt: skip
    assert given.ranks == 14
    assert given.rank_hosts == ["n1"] * 4 + ["n2"] * 4 + ["n3"] * 4 + ["m4"] * 2


@pytest.mark.parametrize("tasks", ["", "many", "2(x2)", "1,", "3(x0)"])
def test_counts_that_do_not_fit_the_hosts_are_refused(tasks):
    with pytest.raises(UsageError, match=r"SLURM_TASKS_PER_NODE=.* 1 hosts"):
        allocation(ONE | {"SLURM_TASKS_PER_NODE": tasks})


def test_a_nodelist_that_cannot_be_expanded_is_refused(programs, monkeypatch):
    programs("scontrol", "echo nonsense >&2; exit 1")
    with pytest.raises(UsageError, match=r"n\[1-2\]: nonsense"):
        allocation(ONE | {"SLURM_JOB_NODELIST": "n[1-2]"})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="no scontrol in PATH"):
        allocation(ONE | {"SLURM_JOB_NODELIST": "n[1-2]"})


# -- how ranks are started ------------------------------------------------------------------------


def test_mpirun_gets_the_hosts_with_their_ranks():
    command = launch_command(GIVEN, ["job.py", "--seed", "1"], {})
    assert Path(command[0]) == Path(sys.executable).with_name("mpirun")
    assert command[1:] == [
        "-n", "3", "--host", "a:2,b:1", "--map-by", "slot", "--bind-to", "none",
        sys.executable, "job.py", "--seed", "1",
    ]  # fmt: skip


def test_hydra_reads_the_allocation_by_itself(programs, tmp_path, monkeypatch):
    programs("mpirun", "echo HYDRA build details: Version 4.1")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    command = launch_command(GIVEN, ["job.py"], {})
    assert command[1:] == ["-n", "3", "-bind-to", "none", sys.executable, "job.py"]


def test_srun_gets_what_it_does_not_take_from_the_allocation(programs):
    programs("srun", 'test "$*" = "--mpi=list" && echo "MPI plugin types are: none pmix"')
    given = Allocation("7", ("a", "b"), (2, 2), 2, 0)
    assert launch_command(given, ["job.py"], {"LAUNCHER": "srun"}) == [
        "srun", "--mpi=pmix", "--ntasks=4", "--distribution=block", "--cpu-bind=none",
        "--kill-on-bad-exit=1", "--cpus-per-task=2", sys.executable, "job.py",
    ]  # fmt: skip


def test_what_cannot_start_ranks_is_refused(programs, monkeypatch):
    with pytest.raises(UsageError, match="LAUNCHER='ssh'; allowed: mpirun, srun"):
        launch_command(GIVEN, [], {"LAUNCHER": "ssh"})
    programs("srun", "echo MPI plugin types are: none pmi2")
    with pytest.raises(UsageError, match="no PMIx plugin"):
        launch_command(GIVEN, [], {"LAUNCHER": "srun"})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="srun does not run"):
        launch_command(GIVEN, [], {"LAUNCHER": "srun"})


def test_a_container_goes_around_every_rank():
    command = launch_command(GIVEN, ["job.py"], {"RANK_WRAPPER": "apptainer exec --nv x.sif"})
    assert command[-6:] == ["apptainer", "exec", "--nv", "x.sif", sys.executable, "job.py"]


# -- how it goes on -------------------------------------------------------------------------------


class Ended:
    """A run folder, and a scontrol that notes what it was asked for."""

    def __init__(self, tmp_path, programs):
        self.asked = tmp_path / "asked"
        self.folder = RunFolder(tmp_path / "run")
        self.folder.checkpoints.mkdir(parents=True)
        self._programs = programs
        self.is_now("RUNNING", "None")

    def is_now(self, state, reason):
        """What scontrol tells of the job; what else it is asked for it notes."""
        told = f"JobId=7 JobName=impala JobState={state} Reason={reason} Requeue=1"
        self._programs(
            "scontrol",
            f'case "$*" in "--oneliner show job 7") echo "{told}";; *) echo "$*" >> {self.asked};; '
            "esac",
        )

    def save(self, frames):
        (self.folder.checkpoints / f"frames-{frames:012d}.h5").touch()

    def requeued(self):
        return self.asked.exists() and self.asked.read_text() == "requeue 7\n"


@pytest.fixture
def ended(tmp_path, programs, monkeypatch):
    monkeypatch.setattr(slurm, "KILLED_WITHIN_S", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    yield Ended(tmp_path, programs)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("code", "signalled"), [(75, True), (1, False), (137, False), (1, True)])
def test_what_was_interrupted_and_has_made_progress_goes_back(ended, code, signalled, capsys):
    ended.save(10)
    before = newest_checkpoint(ended.folder)
    ended.save(20)
    assert conclude(GIVEN, code, ended.folder, before, signalled, BATCH) == code
    assert ended.requeued()
    assert "frames-000000000020.h5: job 7 goes back to the queue" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 2])
def test_success_and_wrong_usage_do_not(ended, code):
    ended.save(20)
    assert conclude(GIVEN, code, ended.folder, None, True, BATCH) == code
    assert not ended.asked.exists()


def test_nor_what_the_user_stopped(ended):
    ended.save(20)
    assert conclude(GIVEN, 75, ended.folder, None, False, BATCH) == 75
    assert not ended.asked.exists()


def test_nor_a_job_inside_somebody_elses_script(ended):
    """A notebook's, or a command of an interactive allocation: the Slurm job is not ours."""
    ended.save(20)
    for variables in ({}, {"DRL_MPI_BATCH": "1"}):
        assert conclude(GIVEN, 75, ended.folder, None, True, variables) == 75
        assert not ended.asked.exists()


def test_nor_what_makes_no_progress(ended, capsys):
    ended.save(20)
    before = newest_checkpoint(ended.folder)
    assert conclude(GIVEN, 1, ended.folder, before, False, BATCH) == 1
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
    assert conclude(GIVEN, 75, ended.folder, None, True, BATCH) == 75
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
    assert conclude(given, 75, ended.folder, None, True, BATCH | variables) == 75
    assert ended.requeued() is goes


def test_a_cap_that_is_no_number_is_refused(ended):
    ended.save(20)
    with pytest.raises(UsageError, match="MAX_REQUEUES='often'; allowed: 0 or more"):
        slurm.most_requeues({"MAX_REQUEUES": "often"})


def test_a_site_without_requeue_is_told_what_to_do(ended, programs, capsys):
    programs(
        "scontrol",
        'case "$1" in --oneliner) echo JobState=RUNNING;; '
        "*) echo Requeue is disabled >&2; exit 1;; esac",
    )
    ended.save(20)
    assert conclude(GIVEN, 75, ended.folder, None, True, BATCH) == 75
    assert "Requeue is disabled; submit it again" in capsys.readouterr().err


def test_the_job_waits_for_slurm_to_end_it(ended):
    """A script that is gone before could be taken for the job's own end."""
    code = (
        "import os, sys; from drl_mpi.run import slurm; from drl_mpi.run.folder import RunFolder\n"
        "given = slurm.Allocation('7', ('a',), (1,), None, 0)\n"
        "slurm.conclude(given, 75, RunFolder(sys.argv[1]), None, True,"
        " {'DRL_MPI_BATCH': str(os.getpid())})"
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


# -- the scripts ----------------------------------------------------------------------------------

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    try:
        done = subprocess.run(
            ["shellcheck", "-x", str(script)], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        if os.environ.get("CI"):
            raise
        pytest.skip("not installed: apt-get install shellcheck")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("home", [{"DRL_MPI_HOME": str(ROOT)}, {}])
def test_outside_slurm_a_script_says_how_to_submit_it(home):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", str(ROOT / "slurm" / "impala.sh")],
        env=kept | home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "submit it: sbatch slurm/NAME.sh" in done.stderr
