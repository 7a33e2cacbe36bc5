"""Runs the stages, one after the other on every core, and then the real job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from drl_mpi.bench.config import Bench, command_line
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.metrics import read_progress

Window = tuple[int, float]
"""(steps, seconds)"""


class BenchError(RuntimeError):
    """A measurement failed; the message says where to look."""


@dataclass(frozen=True)
class StageWindows:
    """What one stage did."""

    windows: list[list[Window]]
    """[processes][repeats]"""
    load_before: float
    """The machine's 1-minute load average before it: the machine should have been idle."""


@dataclass(frozen=True)
class JobRows:
    """What the job did."""

    command: list[str]
    folder: Path
    layout: str
    rows: list[dict[str, float]]
    """Of its progress.csv; the first ends the warm-up."""
    load_before: float


def measure_stage(stage: str, config: Bench, processes: int) -> StageWindows:
    """Runs one process of ``stage`` per core, all started together.

    They are not bound to cores, as the job's ranks are not: the kernel spreads them.

    Raises:
        BenchError: when a process fails; it has said why on stderr.
    """
    options = command_line(config.job(config.path))
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        children = []
        for process in range(processes):
            words = [stage, str(process), str(config.seconds), str(config.repeats), *options]
            child = subprocess.Popen(
                [sys.executable, "-m", "drl_mpi.bench.stage", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            stack.enter_context(child)
            stack.callback(child.kill)  # of no effect on one that has ended
            children.append(child)
        for child in children:
            _expect(stage, child, "ready")
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
        windows = [
            [(int(steps), float(s)) for steps, s in json.loads(_expect(stage, child, "[["))]
            for child in children
        ]
        for child in children:
            child.wait()
    return StageWindows(windows, load)


def _expect(stage: str, child: subprocess.Popen[str], start: str) -> str:
    """The next line that begins with ``start``; an emulator may print others before it."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(start):
            return line
    raise BenchError(f"a process of the stage {stage!r} ended with code {child.wait()}; see above")


def measure_job(config: Bench, job: Path) -> JobRows:
    """Runs the job as a user does, into a folder of its own beside the results.

    Args:
        config: the bench's.
        job: jobs/impala.py.

    Raises:
        BenchError: when it fails or is too short.
    """
    number = next(n for n in range(1, 1_000_000) if not (config.path / f"job-{n}").exists())
    folder = config.path / f"job-{number}"
    command = [sys.executable, str(job), *command_line(config.job(folder))]
    load = os.getloadavg()[0]
    said = config.path / f"job-{number}.log"
    with said.open("w") as file:
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code:
        last = "\n".join(said.read_text(errors="replace").splitlines()[-20:])
        raise BenchError(f"the job ended with code {code}; {said} ends with\n{last}")
    files = RunFolder(folder)
    table = read_progress(files.progress)
    columns = {name: column.tolist() for name, column in table.items()}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values())]
    if len(rows) < 2:
        raise BenchError(
            f"the job has {len(rows)} rows in {files.progress}, 2 are needed: one ends the "
            "warm-up, one the measurement; raise --seconds or --total-frames"
        )
    return JobRows(command, folder, files.layout.read_text().rstrip(), rows, load)


def as_table(windows: Sequence[Sequence[Window]]) -> list[list[float]]:
    """Steps/s [repeats][processes]."""
    return [[steps / seconds for steps, seconds in at_once] for at_once in zip(*windows)]
