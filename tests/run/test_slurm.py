"""A Slurm allocation as its variables tell it, and the scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from drl_mpi.errors import UsageError
from drl_mpi.run import slurm
from drl_mpi.run.slurm import Allocation, allocation, launch_command

ROOT = Path(__file__).parents[2]
ONE = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "cloud",
    "SLURM_TASKS_PER_NODE": "3",
}
GIVEN = Allocation("7", ("a", "b"), (2, 1), None, 0)


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


def test_a_shell_that_srun_opened_has_this_host_alone(programs):
    shell = ONE | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_TASKS_PER_NODE": "1"}
    assert allocation(shell) is None
    programs("scontrol", 'printf "n1\\nn2\\n"')
    with pytest.raises(UsageError, match=r"on one of 2 hosts.*unset SLURM_JOB_ID"):
        allocation(shell | {"SLURM_JOB_NODELIST": "n[1-2]"})


def test_a_heterogeneous_job_is_refused():
    assert allocation(ONE | {"SLURM_HET_SIZE": "1"}).ranks == 3
    with pytest.raises(UsageError, match="heterogeneous Slurm job of 2 components"):
        allocation(ONE | {"SLURM_HET_SIZE": "2"})


def test_gpus_that_torch_does_not_see_are_told():
    assert slurm.unseen_gpus(0, {}) == ""
    assert slurm.unseen_gpus(0, {"SLURM_GPUS_ON_NODE": "0"}) == ""
    assert slurm.unseen_gpus(2, {"SLURM_GPUS_ON_NODE": "2"}) == ""
    assert "Slurm gave 2 GPUs" in slurm.unseen_gpus(0, {"SLURM_GPUS_ON_NODE": "2"})
    hidden = {"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": ""}
    assert slurm.unseen_gpus(0, hidden) == "", "as the user wished"


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
        "--kill-on-bad-exit=1", "--export=ALL", "--cpus-per-task=2", sys.executable, "job.py",
    ]  # fmt: skip
    inside = launch_command(given, ["job.py"], {"LAUNCHER": "srun", "SLURM_STEP_ID": "0"})
    assert "--overlap" in inside


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
    command = launch_command(GIVEN, ["job.py"], {"RANK_WRAPPER": "apptainer exec 'an x.sif'"})
    assert command[-5:] == ["apptainer", "exec", "an x.sif", sys.executable, "job.py"]
    with pytest.raises(UsageError, match=r"RANK_WRAPPER=.*: No closing quotation"):
        launch_command(GIVEN, ["job.py"], {"RANK_WRAPPER": "apptainer 'exec"})


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
