"""The command line of jobs/doctor.py."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from drl_mpi.comm.guard import Guard
from drl_mpi.errors import EXIT_OK, EXIT_USAGE, UsageError
from drl_mpi.run.doctor import library, look, report, survey
from drl_mpi.run.doctor.checks import judge
from drl_mpi.run.doctor.facts import Launch, Launcher, Mpirun, Survey
from drl_mpi.run.launcher import LAST_WORD_S, StopSignals

START_S = 180.0
"""Seconds that MPI may take to bring all ranks together: some may import slowly at first."""
FORWARD_S = 0.2
"""Seconds that a launcher gets to show the table before the abort's notice overtakes it."""
DEFAULT_TIMEOUT_S = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Examines, prints the table, returns the exit code: 1 if anything failed.

    Args:
        arguments: the command line without the program; ``sys.argv[1:]`` if not given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    speaks = True
    try:
        launch = look.launch()
        speaks = launch.rank == 0
        options = _parse(words, quiet=not speaks)
        if launch.launcher is Launcher.NONE:
            code = _over_allocation(words)
            if code is not None:
                return code
        found = _examine(launch, options)
        return EXIT_OK if found is None else _tell(found, options)
    except UsageError as error:
        if speaks:
            print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(LAST_WORD_S)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parse(words: Sequence[str], *, quiet: bool) -> argparse.Namespace:
    parser = _Parser(
        prog=Path(sys.argv[0]).name,
        description="Checks Python, MPI, hosts, messages and files, and says what to mend.",
        epilog="Exit code: 0, or 1 if a line says fail, or 2 for a wrong command line.",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("runs"),
        metavar="PATH",
        help="folder to try: on the file system where runs are to be kept (default: runs)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="file for the results, with the facts behind them"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        metavar="SECONDS",
        help="that a rank may take to answer before it counts as stuck (default: 20)",
    )
    with contextlib.redirect_stdout(io.StringIO() if quiet else sys.stdout):
        options = parser.parse_args(words)
    if not (math.isfinite(options.timeout) and 0 < options.timeout <= 600):
        raise UsageError(f"--timeout is {options.timeout:g} seconds; allowed: above 0, up to 600")
    if options.json is not None and (options.json.is_dir() or not options.json.parent.is_dir()):
        raise UsageError(
            f"--json is {str(options.json)!r}; it must name a file in a folder that exists"
        )
    return options


class _Parser(argparse.ArgumentParser):
    """Reports bad usage as this package does: one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def _over_allocation(words: Sequence[str]) -> int | None:
    """In a Slurm job's script: starts the ranks and returns their exit code. Else ``None``."""
    if look.slurm() is None:
        return None
    try:
        from drl_mpi.run import slurm
    except ImportError:  # a package is missing, which the table will tell
        return None
    given = slurm.allocation()
    if given is None:
        return None
    command = slurm.launch_command(given, [sys.argv[0], *words])
    # There is nothing to save, so the first signal ends the ranks.
    code = StopSignals().supervise(command, None, hosts=len(given.hosts))
    return 128 - code if code < 0 else code


def _examine(launch: Launch, options: argparse.Namespace) -> Survey | None:
    """What was found out; ``None`` on ranks that do not tell it."""
    first = launch.rank == 0
    here = look.machine(launch.rank)
    # Programs are started before MPI is: after that it may not be done.
    if launch.first_here:
        here = replace(here, software=look.software())
    mpirun = look.mpirun() if first else Mpirun()
    if launch.launcher is Launcher.SRUN_ALONE:
        # Some MPI libraries end a process that they find in this position.
        return survey.alone(launch, options.run_dir, mpirun, here) if first else None
    guard = Guard(launch.rank)
    try:
        with guard.bounded(START_S, "MPI_Init"):
            comm, mpi = library.start_on_all_ranks(launch.launcher)
    except Exception as error:
        text = " ".join(str(error).split())
        if not first:
            if launch.first_here:  # it may be the only host without MPI, and rank 0 wait for it
                print(f"rank {launch.rank} on {here.host}: {text}", file=sys.stderr, flush=True)
            return None
        return survey.alone(launch, options.run_dir, mpirun, here, text)
    here = replace(here, mpi=mpi)
    if comm is None:
        return survey.alone(launch, options.run_dir, mpirun, here) if first else None
    if comm.Get_rank():
        survey.follow(comm, here, options.timeout)
        found = None
    elif first or comm.Get_size() > 1:
        found = survey.lead(comm, launch, here, options.run_dir, mpirun, options.timeout)
    else:  # a world of one that does not know of the others: the first of them tells
        found = None
    if found is None or not found.broken:
        with guard.bounded(START_S, "MPI_Finalize"):
            library.finalize()
    return found


def _tell(found: Survey, options: argparse.Namespace) -> int:
    findings = judge(found)
    print(report.table(findings))
    print()
    print("\n".join(report.summary(found, findings)), flush=True)
    code = report.exit_code(findings)
    try:
        if options.json is not None:
            report.write_json(options.json, found, findings)
    except OSError as error:
        print(f"--json {options.json}: {error.strerror or error}", file=sys.stderr, flush=True)
        code = EXIT_USAGE
    if found.broken:
        time.sleep(FORWARD_S)
        library.abort(code)
    return code
