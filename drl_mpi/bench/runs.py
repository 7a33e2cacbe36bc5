"""Runs jobs as a user does, and reads what they wrote to progress.csv."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from drl_mpi.bench.command import BenchError
from drl_mpi.bench.config import layout_here
from drl_mpi.errors import EXIT_OK, EXIT_STOPPED
from drl_mpi.run.command_line import parse
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.metrics import read_progress

JOBS = Path(__file__).parents[2] / "jobs"
LOOK_EVERY_S = 1.0
START_S = 120.0
"""Seconds in which a job's first update must have come; some are normal."""
END_S = 10.0
"""Seconds that a job gets to end when it is not wanted any more."""
SERVICE = (
    "pps", "tps", "predict_batch_mean", "predict_batch_p10", "predict_batch_p90",
    "request_wait_ms_p50", "request_wait_ms_p99", "unroll_lag_mean",
    "predictors", "trainers", "active_actors",
)  # fmt: skip
"""Columns of central acting whose means over time are of interest."""
WAITS = ("actor_wait", "learner_wait")

Row = dict[str, float]


def check_job(system: str, options: Sequence[str]) -> None:
    """Refuses now what a job would refuse later. Raises UsageError."""
    presets = importlib.import_module(f"drl_mpi.systems.{system}").PRESETS
    config = parse(presets, options)
    config.check()
    layout_here(config)


def run_for(
    system: str,
    options: Sequence[str],
    seconds: float,
    enough: Callable[[list[Row]], bool] | None = None,
) -> list[Row]:
    """Rows of a job that runs for some seconds, one for each of these; its folder is removed.

    Args:
        system: name of the job in jobs/.
        options: of it.
        seconds: after its first update; environments take their time to start.
        enough: ends it earlier, by what its rows say.
    """

    def over(rows: list[Row]) -> bool:
        if not rows:
            return False
        return rows[-1]["time_s"] - rows[0]["time_s"] >= seconds or bool(enough and enough(rows))

    with tempfile.TemporaryDirectory(prefix="drl-bench-") as where:
        folder = RunFolder(Path(where) / "run")
        command = [
            sys.executable, str(JOBS / f"{system}.py"), *options, "--log-seconds", "1",
            "--checkpoint-minutes", "1e6", "--max-minutes", f"{(START_S + seconds) / 60:.2f}",
            "--run-dir", str(folder.path),
        ]  # fmt: skip
        run_job(command, Path(where) / "log", folder, over)
        return rows_of(folder)


def run_job(
    command: Sequence[str],
    said: Path,
    folder: RunFolder,
    enough: Callable[[list[Row]], bool] | None = None,
) -> None:
    """Runs a job to its end.

    Args:
        command: of the job.
        said: a file for what it says.
        folder: of the run.
        enough: told all rows now and then: whether the run may end.

    Raises:
        BenchError: when it fails.
    """
    with said.open("w") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        while True:
            try:
                code = process.wait(None if enough is None else LOOK_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                if enough is not None and folder.progress.exists() and enough(rows_of(folder)):
                    folder.stop.touch()
                    enough = None
    finally:
        _end(process)
    if code not in (EXIT_OK, EXIT_STOPPED):
        last = "\n".join(said.read_text(errors="replace").splitlines()[-20:])
        raise BenchError(f"the job ended with code {code}, and said at last\n{last}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Of no effect on a job that has ended."""
    process.terminate()  # it saves and ends its ranks by itself
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its launcher ends with it
        process.wait()


def rows_of(folder: RunFolder) -> list[Row]:
    """A run's progress.csv."""
    columns = {name: column.tolist() for name, column in read_progress(folder.progress).items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values())]


def after(rows: Sequence[Row], seconds: float) -> list[Row]:
    """Without the warm-up, which is so many seconds from the first row on: the row that ends it
    is the first one left.

    Raises:
        BenchError: when these are too few.
    """
    left = [row for row in rows if row["time_s"] >= rows[0]["time_s"] + seconds]
    if len(left) < 2:
        raise BenchError(
            f"the job has {len(left)} rows after its first {seconds:g} s, 2 are needed: one ends "
            "the warm-up, one the measurement; measure for longer"
        )
    return left


def throughput(rows: Sequence[Row], column: str = "steps") -> float:
    """Of a count per second, between the first row and the last."""
    first, last = rows[0], rows[-1]
    return (last[column] - first[column]) / (last["time_s"] - first["time_s"])


def mean(rows: Sequence[Row], column: str, weight: str = "time_s") -> float:
    """Of what the rows say about the time since the row before; NaN if none does."""
    total = weights = 0.0
    for before, now in pairwise(rows):
        value, weighs = now.get(column, math.nan), now[weight] - before[weight]
        if math.isfinite(value):
            total, weights = total + weighs * value, weights + weighs
    return total / weights if weights else math.nan


def predicted(rows: Sequence[Row]) -> float:
    """Environments per prediction: all that were served, over all batches. NaN if none were."""
    served = batches = 0.0
    for before, now in pairwise(rows):
        envs = now.get("pps", math.nan) * (now["time_s"] - before["time_s"])
        if envs > 0:
            served, batches = served + envs, batches + envs / now["predict_batch_mean"]
    return served / batches if batches else math.nan


def summary(rows: Sequence[Row]) -> Row:
    """A run in a few numbers; NaN where they mean nothing."""
    return {
        "seconds": rows[-1]["time_s"] - rows[0]["time_s"],
        "steps_per_s": throughput(rows),
        "updates_per_s": throughput(rows, "updates"),
        **{name: mean(rows, name) for name in (*WAITS, *SERVICE)},
        "predict_batch_mean": predicted(rows),
    }
