"""A tool's way from its command line to files and an exit code."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from drl_mpi.errors import EXIT_OK, EXIT_USAGE, UsageError
from drl_mpi.run.folder import write_atomically
from drl_mpi.run.launcher import core_quota, launched_ranks

BUSY = 0.5
"""A load average before the start from which other programs count as at work."""
PACKAGES = ("torch", "numpy", "mpi4py", "gymnasium", "ale-py", "drl-mpi")

Numbers = dict[str, Any]


class BenchError(RuntimeError):
    """A measurement failed; the message says where to look."""


class Parser(argparse.ArgumentParser):
    """Reports bad usage as this package does: one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def guard(program: str, work: Callable[[], object]) -> int:
    """Does the work and returns the exit code; what went wrong is said on stderr.

    Args:
        program: its name, for that.
        work: raises UsageError or BenchError.
    """
    # An exception ends what was started; the default would leave it running.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        work()
    except UsageError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except BenchError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, before)
    return EXIT_OK


def refuse_launcher() -> None:
    """Raises UsageError under mpirun, which these tools start themselves."""
    if launched_ranks() is not None:
        raise UsageError("the bench starts mpirun itself; run it without mpirun or srun")


def split_job_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """A tool's own words, and what follows ``--``: options of the job."""
    words = list(words)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def provenance(command: Sequence[str]) -> Numbers:
    """What every result begins with: the command, when, and on which machine."""
    return {
        "command": shlex.join(command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": os.getloadavg()[0],
        "machine": machine(core_quota()),
    }


def module_command(module: str, words: Sequence[str]) -> list[str]:
    """The command by which a tool was called."""
    return ["python", "-m", module, *words]


def machine(cores: int) -> Numbers:
    """What the numbers were measured on, and with."""
    from drl_mpi.comm.world import library_version

    versions = {"python": platform.python_version(), "mpi": library_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return {
        "host": socket.gethostname(),
        "cpu": _cpu_model(),
        "cores": cores,
        "system": platform.platform(),
        "versions": versions,
    }


def footer(result: Numbers) -> list[str]:
    """Lines below a table: the machine, and whether it was quiet.

    Args:
        result: with what ``provenance`` gives.
    """
    found = result["machine"]
    with_ = ", ".join(
        f"{name} {found['versions'][name]}" for name in ("python", "torch", "numpy", "ale-py")
    )
    mpi = found["versions"]["mpi"].partition(",")[0]
    lines = [f"{found['cpu']}, {found['cores']} cores; {with_}; {mpi}"]
    if result["load_before"] > BUSY:
        lines.append(
            f"The load average before the start was {result['load_before']:.1f}: other programs "
            "were at work, so measure again on a quiet machine"
        )
    return lines


def make_folder(path: Path, option: str) -> None:
    """Makes a folder for results, and proves that files can be written. Raises UsageError.

    Args:
        path: of the folder.
        option: that chose it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / ".probe", b"")
        (path / ".probe").unlink()
    except OSError as error:
        raise UsageError(
            f"{option} {str(path)!r} cannot be used: {error.strerror or error}; it must be a "
            "folder that you may write to"
        ) from error


def write_json(path: Path, result: Any) -> None:
    """Writes all the numbers; those that are not finite become null."""
    text = json.dumps(_finite(result), indent=2, default=str, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def write_text(path: Path, text: str) -> None:
    """Writes a table, as it was printed."""
    write_atomically(path, f"{text}\n".encode())


def draw_or_say(draw: Callable[[], object]) -> None:
    """Draws a picture, or says what it lacks."""
    try:
        draw()
    except ImportError as error:
        print(f"no picture: it needs matplotlib ({error}): pip install -e '.[plot]'")


def say(text: str) -> None:
    """Tells the user, beside the results."""
    print(text, file=sys.stderr, flush=True)


def _finite(value: Any) -> Any:
    """JSON has no word for NaN, such as the mean return before the first game has ended."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
