"""Runs the stages, one after the other on every core, and the real job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from drl_mpi.bench.command import BenchError
from drl_mpi.bench.config import BatchSize, BenchOptions, bench_command_line, command_line
from drl_mpi.bench.runs import Row, rows_of, run_job
from drl_mpi.run.folder import RunFolder

Window = tuple[int, float]
"""(steps, seconds)"""


@dataclass(frozen=True)
class StageWindows:
    """What one stage did."""

    batch: BatchSize
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
    rows: list[Row]
    """Of its progress.csv; the first ends the warm-up."""
    load_before: float


def measure_stage(
    stage: str, config: BenchOptions, batch: BatchSize, processes: int
) -> StageWindows:
    """Runs one process of ``stage`` per core, all started together.

    They are not bound to cores, as the job's ranks are not: the kernel spreads them.

    Raises:
        BenchError: when a process fails; it has said why on stderr.
    """
    options = bench_command_line(config)
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        children = []
        for process in range(processes):
            words = [stage, str(process), str(batch.environments), *options]
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
    return StageWindows(batch, windows, load)


def _expect(stage: str, child: subprocess.Popen[str], start: str) -> str:
    """The next line that begins with ``start``; an emulator may print others before it."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(start):
            return line
    raise BenchError(f"a process of the stage {stage!r} ended with code {child.wait()}; see above")


def measure_job(config: BenchOptions, job: Path) -> JobRows:
    """Runs the job as a user does, into a folder of its own beside the results.

    Args:
        config: the bench's.
        job: the file in jobs/.

    Raises:
        BenchError: when it fails or is too short.
    """
    number = next(n for n in range(1, 1_000_000) if not (config.path / f"job-{n}").exists())
    folder = RunFolder(config.path / f"job-{number}")
    command = [sys.executable, str(job), *command_line(config.job(folder.path))]
    load = os.getloadavg()[0]
    run_job(command, config.path / f"job-{number}.log", folder)
    rows = rows_of(folder)
    if len(rows) < 2:
        raise BenchError(
            f"the job has {len(rows)} rows in {folder.progress}, 2 are needed: one ends the "
            "warm-up, one the measurement; raise --seconds or --total-frames"
        )
    return JobRows(command, folder.path, folder.layout.read_text().rstrip(), rows, load)


def as_table(windows: Sequence[Sequence[Window]]) -> list[list[float]]:
    """Steps/s [repeats][processes]."""
    return [[steps / seconds for steps, seconds in at_once] for at_once in zip(*windows)]
