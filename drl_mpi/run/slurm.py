"""Inside a Slurm allocation: what it holds, how ranks are started on it, and how a job goes on.

A batch script hands its process over to the job (`exec python jobs/...`), so Slurm's warning before
a preemption or the time limit (`--signal=B:USR2@300`) arrives where it becomes a touch of STOP. The
same process starts the ranks, sees how they ended, and requeues the Slurm job if that makes sense.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drl_mpi.errors import EXIT_OK, EXIT_STOPPED, EXIT_USAGE, UsageError
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.launcher import mpirun_path

LAUNCHER = "LAUNCHER"
"""Variable that chooses what starts the ranks: mpirun (default) or srun."""
LAUNCHERS = ("mpirun", "srun")
MAX_REQUEUES = "MAX_REQUEUES"
"""Variable that bounds how often a job goes back to the queue by itself; 0 for never."""
USUAL_REQUEUES = 100
RANK_WRAPPER = "RANK_WRAPPER"
"""Variable with the words that every rank's command begins with, such as a container's."""
BATCH = "DRL_MPI_BATCH"
"""Variable with the process id of the batch script, which has handed itself over to the job."""
KILLED_WITHIN_S = 60.0
"""Seconds within which Slurm ends a job that it has put back into the queue."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What Slurm gave."""

    job: str
    """Slurm's name of the job: its number, or for one task of an array "number_index". The number
    of an array's last task is that of the whole array."""
    hosts: tuple[str, ...]
    tasks: tuple[int, ...]
    """Per host: Slurm's tasks are our ranks."""
    cpus_per_task: int | None
    """As it was asked for; srun has to be told again (Slurm 22.05 and newer)."""
    restarts: int
    """Times that the job came back from the queue."""

    @property
    def ranks(self) -> int:
        """Of all hosts."""
        return sum(self.tasks)

    @property
    def rank_hosts(self) -> list[str]:
        """Host of each rank: both launchers fill one host after the other."""
        return [host for host, count in zip(self.hosts, self.tasks) for _ in range(count)]


def allocation(environment: Mapping[str, str] = os.environ) -> Allocation | None:
    """The allocation that this process is the batch script or the shell of; ``None`` outside one.

    Raises:
        UsageError: for variables that cannot be understood, and in one of several tasks of srun.
    """
    if "SLURM_JOB_ID" not in environment or "SLURM_JOB_NODELIST" not in environment:
        return None
    together = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if together != "1":
        raise UsageError(
            f"srun started {together} tasks that do not know of one another; use srun --mpi=pmix, "
            "or start the job once, without srun: it takes the whole allocation"
        )
    hosts = _hosts(environment["SLURM_JOB_NODELIST"])
    per_task = environment.get("SLURM_CPUS_PER_TASK")
    array, index = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return Allocation(
        f"{array}_{index}" if array and index else environment["SLURM_JOB_ID"],
        hosts,
        _per_host(environment, "SLURM_TASKS_PER_NODE", len(hosts)),
        int(per_task) if per_task else None,
        int(environment.get("SLURM_RESTART_COUNT", "0")),
    )


def _hosts(nodelist: str) -> tuple[str, ...]:
    if not any(mark in nodelist for mark in "[],"):
        return (nodelist,)
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        raise UsageError(
            f"SLURM_JOB_NODELIST={nodelist}, but there is no scontrol in PATH to expand it; add "
            "Slurm's bin folder to PATH, or start the job with mpirun"
        )
    done = subprocess.run(
        [scontrol, "show", "hostnames", nodelist], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UsageError(
            f"scontrol cannot expand SLURM_JOB_NODELIST={nodelist}: {done.stderr.strip()}; start "
            "the job with mpirun"
        )
    return tuple(done.stdout.split())


def _per_host(environment: Mapping[str, str], name: str, hosts: int) -> tuple[int, ...]:
    """Slurm's way of writing a number per host: "4(x2),1"."""
    text = environment.get(name, "")
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            counts.clear()
            break
        counts += [int(found[1])] * int(found[2] or 1)
    if len(counts) != hosts:
        raise UsageError(
            f"{name}={text!r} does not tell a number for each of {hosts} hosts; is this inside an "
            "allocation of sbatch or salloc? Else unset SLURM_JOB_ID"
        )
    return tuple(counts)


def launch_command(
    given: Allocation, argv: Sequence[str], environment: Mapping[str, str] = os.environ
) -> list[str]:
    """The command that starts ``argv`` on every task of the allocation.

    Raises:
        UsageError: for an unknown launcher, or one that cannot start MPI ranks here.
    """
    most_requeues(environment)  # to be refused now rather than when it is needed
    launcher = environment.get(LAUNCHER) or LAUNCHERS[0]
    if launcher not in LAUNCHERS:
        raise UsageError(f"{LAUNCHER}={launcher!r}; allowed: {', '.join(LAUNCHERS)}")
    command = [*environment.get(RANK_WRAPPER, "").split(), sys.executable, *argv]
    # Ranks share their host's cores as the layout says, so none is bound to some of them.
    if launcher == "srun":
        _check_pmix()
        wide = [f"--cpus-per-task={given.cpus_per_task}"] if given.cpus_per_task else []
        return [
            "srun", "--mpi=pmix", f"--ntasks={given.ranks}", "--distribution=block",
            "--cpu-bind=none", "--kill-on-bad-exit=1", *wide, *command,
        ]  # fmt: skip
    mpirun, ours = mpirun_path()
    if not ours:
        return [mpirun, "-n", str(given.ranks), "-bind-to", "none", *command]
    slots = ",".join(f"{host}:{count}" for host, count in zip(given.hosts, given.tasks))
    return [
        mpirun, "-n", str(given.ranks), "--host", slots, "--map-by", "slot", "--bind-to", "none",
        *command,
    ]  # fmt: skip


def _check_pmix() -> None:
    try:
        done = subprocess.run(
            ["srun", "--mpi=list"], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(
            f"{LAUNCHER}=srun, but srun does not run: {error}; use {LAUNCHER}=mpirun"
        ) from error
    if "pmix" not in done.stdout + done.stderr:
        raise UsageError(
            f"{LAUNCHER}=srun, but this Slurm has no PMIx plugin (srun --mpi=list does not name "
            f"it); use {LAUNCHER}=mpirun, or ask your site for Slurm's PMIx plugin"
        )


def conclude(
    given: Allocation,
    code: int,
    folder: RunFolder,
    before: str | None,
    signalled: bool,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """What follows from how the ranks ended: puts the Slurm job back into the queue, or not.

    Args:
        given: the allocation.
        code: exit code of the job; 0 only if DONE is there.
        folder: of the run.
        before: name of the newest checkpoint before the ranks started.
        signalled: whether Slurm asked to stop, not the user.

    Returns:
        The exit code of the batch script; it does not return if the job was requeued.
    """
    if environment.get(BATCH) != str(os.getpid()):
        return code  # a command inside somebody's script or shell: the Slurm job is theirs
    if code in (EXIT_OK, EXIT_USAGE):
        return code
    if code == EXIT_STOPPED and not signalled:
        return code  # somebody touched STOP, and does not want it to go on
    state, reason = _state(given.job)
    if state != "RUNNING" and reason != "TimeLimit":
        # Cancelled, and not to be brought back; or requeued already, by Slurm itself.
        say(f"job {given.job} is {state} ({reason}): it is not requeued from here")
        return code
    newest = newest_checkpoint(folder)
    most = most_requeues(environment)
    if newest == before:
        say(f"no checkpoint since the start: job {given.job} is not requeued")
        return code
    if given.restarts >= most:
        say(f"job {given.job} has come back {given.restarts} times ({MAX_REQUEUES}={most}): enough")
        return code
    say(f"exit {code}, newest checkpoint {newest}: job {given.job} goes back to the queue")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # with which Slurm ends a requeued job's script
    done = subprocess.run(
        ["scontrol", "requeue", given.job], capture_output=True, text=True, check=False
    )
    if done.returncode > 0:  # below 0: it was ended, too
        say(
            f"job {given.job} cannot be requeued: {done.stderr.strip()}; submit it again, or chain "
            "submissions with sbatch --dependency=singleton"
        )
        return code
    time.sleep(KILLED_WITHIN_S)  # to be gone before could be taken for the job's end
    return code


def _state(job: str) -> tuple[str, str]:
    """State of a Slurm job and its reason, as Slurm names them."""
    done = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True, check=False
    )
    fields = dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)
    unknown = done.stderr.strip() or "scontrol does not tell"
    return fields.get("JobState", "unknown"), fields.get("Reason", unknown)


def most_requeues(environment: Mapping[str, str] = os.environ) -> int:
    """How often a job may go back to the queue by itself.

    Raises:
        UsageError: for something else than a number.
    """
    text = environment.get(MAX_REQUEUES) or str(USUAL_REQUEUES)
    if not text.isdecimal():
        raise UsageError(f"{MAX_REQUEUES}={text!r}; allowed: 0 or more; 0 for never")
    return int(text)


def stopped_while_away(given: Allocation, folder: RunFolder) -> bool:
    """Whether the user touched STOP while the job waited in the queue to go on."""
    return given.restarts > 0 and folder.stop_requested() and not folder.stop_signalled()


def newest_checkpoint(folder: RunFolder) -> str | None:
    """Name of the newest checkpoint, or ``None``: a measure of progress."""
    from drl_mpi.run.checkpoint import Checkpoints  # here: it loads h5py, which servers do without

    newest = Checkpoints(folder.checkpoints).latest()
    return None if newest is None else newest.name


def unseen_gpus(seen: int, environment: Mapping[str, str] = os.environ) -> str:
    """What is wrong if Slurm gave GPUs and torch sees none; empty if nothing is.

    Args:
        seen: GPUs of this host that learners may use.
    """
    given = environment.get("SLURM_GPUS_ON_NODE", "0")
    if seen or given in ("", "0"):
        return ""
    return (
        f"Slurm gave {given} GPUs on this node, but torch sees none and learns on cores; install a "
        "torch with CUDA (python jobs/doctor.py tells more), or ask for none"
    )


def say(text: str) -> None:
    """Tells the batch script's output."""
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)
