"""From a command line to roles on ranks, and from whatever happens there to an exit code."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from drl_mpi.errors import EXIT_OK, EXIT_USAGE, UsageError
from drl_mpi.run.command_line import parse
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.job import Job
from drl_mpi.run.launcher import LAST_WORD_S, RELAUNCHED, launched_ranks, usable_cores
from drl_mpi.run.layout import Layout, plan
from drl_mpi.run.relaunch import relaunch
from drl_mpi.run.requeue import early_signals

log = logging.getLogger(__name__)

VERDICTS = 6
"""Times the usual patience that the first rank may take to look at the run folder."""
FORWARD_S = 0.2
"""Seconds that a launcher gets to show a rank's last words before the abort's notice, which takes
another way, overtakes them."""


J = TypeVar("J", bound=Job)


def main(presets: Mapping[str, J], argv: Sequence[str] | None = None) -> None:
    """Runs a job: parses the command line, relaunches under mpirun if need be, plays. Exits.

    Args:
        presets: name -> defaults; the first is what a job uses unless ``--preset`` says otherwise.
        argv: the command line without the program; ``sys.argv[1:]`` if not given.
    """
    signals = early_signals()
    arguments = list(sys.argv[1:] if argv is None else argv)
    launched: tuple[int, int] | None = None
    try:
        with _quiet_interrupt():
            launched = launched_ranks()
            job = parse(presets, arguments, quiet=launched is not None and launched[0] != 0)
            job.check()
            if launched is None:
                sys.exit(relaunch(job, [sys.argv[0], *arguments], signals))
            _leave(_rank_main(job, *launched))
    except UsageError as error:
        first = launched[0] == 0 if launched else os.environ.get("SLURM_PROCID", "0") == "0"
        if first:
            print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(LAST_WORD_S)
        sys.exit(EXIT_USAGE)


@contextlib.contextmanager
def _quiet_interrupt() -> Iterator[None]:
    """Ctrl-C just ends this process, until a run listens to it: there is nothing to save."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else: nohup, or a test
    if usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(code: int) -> NoReturn:
    """Ends a rank that has finished, whatever threads or objects an environment left behind."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    from drl_mpi.comm.world import library_version

    if library_version().startswith("MPICH"):
        # Its launcher hears of MPI_Finalize from a handler of exit, and kills those that still live
        # when a rank is gone without. C's handlers run, Python's threads are not waited for.
        ctypes.CDLL(None).exit(code)
    os._exit(code)


def _rank_main(job: Job, rank: int, size: int) -> int:
    from drl_mpi.comm.guard import Guard
    from drl_mpi.comm.poller import Poller, SilenceError
    from drl_mpi.comm.world import connect, library_version

    guard = Guard(rank)
    with guard.bounded(job.patience_s, "MPI_Init"):
        world = connect()
    guard.close()
    if world.size != size:
        raise UsageError(
            f"the launcher started {size} ranks, but MPI sees {world.size}: its mpirun does not "
            f"belong to the MPI library that mpi4py uses ({library_version()}); use the mpirun "
            f"beside {sys.executable}"
        )
    try:
        here = (socket.gethostname(), usable_cores(), job.gpus())
        world.meet(Poller(job.patience_s), "all ranks")
        ranks = world.gather(here)
        decided = None if ranks is None else _verdict(job, ranks)
        # It may have looked at replays of all learners, from a slow disk.
        world.meet(Poller(VERDICTS * job.patience_s), "the first rank to look at the run folder")
        verdict: str | tuple[Layout, Any] = world.share(decided)
        if isinstance(verdict, str):
            world.leave(job.patience_s)
            raise UsageError(verdict)
        layout, prepared = verdict
        if prepared is None:
            world.leave(job.patience_s)
            return EXIT_OK
        _log_to(RunFolder(job.path).log(world.rank))
        world.meet(Poller(job.patience_s), "the other ranks to open their logs in the run folder")
        code = job.play(world, layout, prepared)
        world.leave(job.patience_s)
        return code
    except BaseException as error:
        if isinstance(error, UsageError) and world.left:
            raise
        # The first thing to be seen is the cause; only then do the other ranks end.
        if isinstance(error, UsageError):
            text, code = f"{Path(sys.argv[0]).name}: rank {world.rank}: {error}\n", EXIT_USAGE
        elif isinstance(error, SilenceError):
            # Others have waited as long, and mostly for the same rank: the first one tells.
            time.sleep(LAST_WORD_S if world.rank else 0.0)
            text, code = f"rank {world.rank}: {error}\n", 1
        else:
            text, code = f"rank {world.rank} failed:\n{traceback.format_exc()}", 1
        sys.stderr.write(text)
        sys.stderr.flush()
        time.sleep(FORWARD_S)
        if log.hasHandlers():
            log.error(text, exc_info=isinstance(error, SilenceError))
        world.abort(code)
        raise


def _verdict(job: Job, ranks: Sequence[tuple[str, set[int], int]]) -> str | tuple[Layout, Any]:
    """Rank 0's decision for all: why this cannot work, or the layout and what was prepared.

    Args:
        job: what is to be played.
        ranks: (host, cores that it may run on, GPUs that it sees) of every rank.
    """
    cores: defaultdict[str, set[int]] = defaultdict(set)
    gpus: defaultdict[str, int] = defaultdict(int)
    for host, may_use, sees in ranks:
        cores[host] |= may_use
        gpus[host] = max(gpus[host], sees)
    try:
        job.check_gpus(max(gpus.values()))
        layout = plan(
            len(ranks),
            [host for host, _, _ in ranks],
            gpus,
            **job.wanted(len(ranks)),
            cores_per_host={host: len(masks) for host, masks in cores.items()},
        )
        job.check_layout(layout)
        prepared = job.inspect(layout)
        if prepared is not None:
            job.claim(clear_stop=RELAUNCHED not in os.environ)
        return layout, prepared
    except UsageError as error:
        return str(error)
    except OSError as error:
        return RunFolder(job.path).unusable(error)


def _log_to(path: Path) -> None:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("drl_mpi")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
