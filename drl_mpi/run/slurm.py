"""Inside a Slurm allocation: what it holds, and how ranks are started on it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drl_mpi.errors import UsageError
from drl_mpi.run.launcher import mpirun_path

LAUNCHER = "LAUNCHER"
"""Variable that chooses what starts the ranks: mpirun (default) or srun."""
LAUNCHERS = ("mpirun", "srun")
RANK_WRAPPER = "RANK_WRAPPER"
"""Variable with the words that every rank's command begins with, such as a container's."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What Slurm gave."""

    job: str
    """Slurm's number of the job."""
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

    A task of its own that srun opened, such as a shell or a notebook, is outside: it has cores of
    this host, and no tasks to make ranks of.

    Raises:
        UsageError: for variables that cannot be understood, and where ranks cannot be started.
    """
    if "SLURM_JOB_ID" not in environment or "SLURM_JOB_NODELIST" not in environment:
        return None
    together = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if together != "1":
        raise UsageError(
            f"srun started {together} tasks that do not know of one another; use srun --mpi=pmix, "
            "or start the job once, without srun: it takes the whole allocation"
        )
    parts = environment.get("SLURM_HET_SIZE", "1")
    if parts != "1":
        raise UsageError(
            f"this is a heterogeneous Slurm job of {parts} components, and ranks are started in "
            'one allocation only; submit one, without ":" among sbatch\'s options'
        )
    hosts = _hosts(environment["SLURM_JOB_NODELIST"])
    if "SLURM_STEP_NUM_TASKS" in environment and environment.get("SLURM_TASKS_PER_NODE") == "1":
        if len(hosts) > 1:
            raise UsageError(
                f"this is one task of srun, on one of {len(hosts)} hosts, which cannot start ranks "
                "on the others; start the job from the shell of salloc itself or by sbatch, or "
                "unset SLURM_JOB_ID to use this host alone"
            )
        return None
    per_task = environment.get("SLURM_CPUS_PER_TASK")
    return Allocation(
        environment["SLURM_JOB_ID"],
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
    launcher = environment.get(LAUNCHER) or LAUNCHERS[0]
    if launcher not in LAUNCHERS:
        raise UsageError(f"{LAUNCHER}={launcher!r}; allowed: {', '.join(LAUNCHERS)}")
    command = [*_wrapper(environment), sys.executable, *argv]
    # Ranks share their host's cores as the layout says, so none is bound to some of them.
    if launcher == "srun":
        _check_pmix()
        wide = [f"--cpus-per-task={given.cpus_per_task}"] if given.cpus_per_task else []
        # Inside a step, such as a shell of srun's, it would wait for that step's cores.
        shared = ["--overlap"] if "SLURM_STEP_ID" in environment else []
        return [
            "srun", "--mpi=pmix", f"--ntasks={given.ranks}", "--distribution=block",
            "--cpu-bind=none", "--kill-on-bad-exit=1", "--export=ALL", *shared, *wide, *command,
        ]  # fmt: skip
    mpirun, ours = mpirun_path()
    if not ours:
        return [mpirun, "-n", str(given.ranks), "-bind-to", "none", *command]
    slots = ",".join(f"{host}:{count}" for host, count in zip(given.hosts, given.tasks))
    return [
        mpirun, "-n", str(given.ranks), "--host", slots, "--map-by", "slot", "--bind-to", "none",
        *command,
    ]  # fmt: skip


def _wrapper(environment: Mapping[str, str]) -> list[str]:
    text = environment.get(RANK_WRAPPER, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{RANK_WRAPPER}={text!r}: {error}; write it as in a shell") from error


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


def unseen_gpus(seen: int, environment: Mapping[str, str] = os.environ) -> str:
    """What is wrong if Slurm gave GPUs and torch sees none; empty if nothing is.

    Args:
        seen: GPUs of this host that torch sees.
    """
    given = environment.get("SLURM_GPUS_ON_NODE", "0")
    if seen or given in ("", "0") or environment.get("CUDA_VISIBLE_DEVICES") == "":
        return ""
    return (
        f"Slurm gave {given} GPUs on this node, but torch sees none and learns on cores; install a "
        "torch with CUDA (python jobs/doctor.py tells more), or ask for none"
    )


def say(text: str) -> None:
    """Tells the batch script's output."""
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)
