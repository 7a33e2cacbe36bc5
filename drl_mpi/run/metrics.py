"""What a run says about itself: the rows of progress.csv, and what fills them.

`Metrics` (drl_mpi/run/meters.py) is what a learner feeds; `ProgressLog` is where its rows go, as
CSV and as TensorBoard events. The CSV is the record. Steps are agent decisions that learners
consumed, frames = steps x action repeat, updates are optimiser steps.
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from drl_mpi.errors import UsageError
from drl_mpi.run.folder import write_atomically
from drl_mpi.run.meters import Episodes, Lag, Metrics, Rate, Share

if TYPE_CHECKING:
    from drl_mpi.run.events import EventFile

log = logging.getLogger(__name__)

__all__ = [
    "COLUMNS",
    "Episodes",
    "Lag",
    "Metrics",
    "ProgressLog",
    "Rate",
    "Row",
    "Share",
    "read_progress",
]

COLUMNS = (
    "time_s",  # seconds of training, without the gaps between runs
    "frames",
    "steps",
    "updates",
    "version",
    "episodes",
    "return_mean",  # unclipped, of the last 100 episodes; NaN before the first
    "frames_per_s",  # since the row before
    "policy_lag_mean",  # versions, since the row before
    "policy_lag_max",
    "actor_wait",  # share of the time spent waiting, 0 to 1, since the row before
    "learner_wait",
)

Row = Mapping[str, float]

_NAME = re.compile(r"[A-Za-z0-9_./-]+")


class ProgressLog:
    """Appends rows to progress.csv, each flushed as it is written, and to TensorBoard.

    Columns are COLUMNS, then `extra_columns`; columns that an existing file has beyond these stay,
    filled with NaN. Nothing is touched on disk before the first `append` or `resume_at`. With
    `tensorboard`, a folder, the same rows go there as events over frames; where these cannot be
    written, `warn` is told once, and the rows go on without them.

    Raises UsageError if `path` exists and is not a progress.csv.
    """

    def __init__(
        self,
        path: Path,
        extra_columns: Sequence[str] = (),
        tensorboard: Path | None = None,
        warn: Callable[[str], object] = log.warning,
    ) -> None:
        names = (*COLUMNS, *extra_columns)
        if not _are_columns(names):
            raise ValueError(f"columns must be plain, distinct names: {', '.join(names)}")
        self.path = path
        self._tensorboard = tensorboard
        self._warn = warn
        self._file: io.TextIOWrapper | None = None
        self._events: EventFile | None = None
        self._purge_step: int | None = None
        stored, rows = _read(path)
        self.columns = (*names, *(name for name in stored if name not in names))
        self._frames = rows[-1]["frames"] if rows else -1.0

    def append(self, row: Row) -> bool:
        """Writes one row; extra columns that it lacks become NaN.

        Returns False, writing nothing, for a row at the frames of the row before, so that a last
        report after a regular one makes no duplicate. Raises ValueError for fewer frames, for a
        missing standard column and for an unknown one.
        """
        if missing := [name for name in COLUMNS if name not in row]:
            raise ValueError(f"a row lacks {', '.join(missing)}")
        if unknown := [name for name in row if name not in self.columns]:
            raise ValueError(f"a row has unknown columns {', '.join(unknown)}; name them first")
        frames = row["frames"]
        if not self._frames <= frames < math.inf:
            raise ValueError(
                f"a row at {frames} frames cannot follow one at {self._frames}; "
                "call resume_at first"
            )
        if frames == self._frames:
            return False
        if self._file is None:
            self.resume_at(math.inf)
            self._file = self.path.open("a", encoding="ascii", newline="")
        self._file.write(_line(_number(row.get(name, math.nan)) for name in self.columns))
        self._file.flush()
        self._frames = frames
        self._append_events(row)
        return True

    def resume_at(self, frames: float) -> dict[str, float] | None:
        """Drops every row beyond a checkpoint's `frames`, and a last line torn by a kill.

        The file is replaced as a whole, so a crash leaves the old rows or the new. Returns the
        last row kept, or None. Also makes the file, with its header, where there is none.
        """
        self.close()
        _, rows = _read(self.path)
        kept = [row for row in rows if row["frames"] <= frames]
        lines = [_line(self.columns)]
        lines += [_line(_number(r.get(name, math.nan)) for name in self.columns) for r in kept]
        write_atomically(self.path, "".join(lines).encode("ascii"))
        self._frames = kept[-1]["frames"] if kept else -1.0
        if math.isfinite(frames):
            self._purge_step = int(frames) + 1  # TensorBoard hides this step and all after it
        return kept[-1] if kept else None

    def close(self) -> None:
        """Closes both files. A later `append` opens them again."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._events is not None:
            self._events.close()
            self._events = None

    def _append_events(self, row: Row) -> None:
        if self._tensorboard is None:
            return
        try:
            if self._events is None:
                # Imported here: only the one rank that logs should pay for it.
                from drl_mpi.run.events import EventFile

                self._events = EventFile(self._tensorboard, self._purge_step)
                self._purge_step = None
            values = {name: value for name, value in row.items() if name != "frames"}
            self._events.add(int(row["frames"]), values)
        except OSError as error:  # they are a copy
            self._warn(f"no more TensorBoard events: {error}; progress.csv has all rows")
            self._tensorboard = None


def read_progress(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Reads a progress.csv, also that of a run still going: column name -> float64 [rows].

    Skips torn lines and rows that do not go forward in frames. Raises UsageError for a file that
    is missing or is not a progress.csv.
    """
    if not path.is_file():
        raise UsageError(f"{str(path)!r} is missing; give the folder of a run that has started")
    names, rows = _read(path)
    return {name: np.array([row[name] for row in rows], np.float64) for name in names}


def _read(path: Path) -> tuple[tuple[str, ...], list[dict[str, float]]]:
    """The column names and the good rows of a progress.csv; nothing for one without a header."""
    try:
        text = path.read_bytes().decode("ascii", errors="replace")
    except FileNotFoundError:
        return (), []
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    whole, _, _ = text.rpartition("\n")  # what follows the last line end was torn by a kill
    if not whole:
        if text and not _line(COLUMNS).startswith(text[:20]):
            raise UsageError(_strange(path, text))
        return (), []
    first, *lines = whole.split("\n")
    header = tuple(first.strip().split(","))
    if not _are_columns(header):
        raise UsageError(_strange(path, first))
    rows: list[dict[str, float]] = []
    for line in lines:
        try:
            row = dict(zip(header, map(float, line.split(",")), strict=True))
        except ValueError:
            continue
        if row["frames"] > (rows[-1]["frames"] if rows else -1):
            rows.append(row)
    return header, rows


def _are_columns(names: tuple[str, ...]) -> bool:
    return (
        names[: len(COLUMNS)] == COLUMNS
        and len(set(names)) == len(names)
        and all(map(_NAME.fullmatch, names))
    )


def _strange(path: Path, start: str) -> str:
    return (
        f"{str(path)!r} is not a progress.csv: it begins {start[:40]!r} where "
        f"'{','.join(COLUMNS[:3])},...' belongs; move it away or choose another run folder"
    )


def _number(value: float) -> str:
    """Counts in full, all else to seven digits: a curve needs no more."""
    value = float(value)
    return str(int(value)) if value.is_integer() else f"{value:.7g}"


def _line(fields: Iterable[str]) -> str:
    return ",".join(fields) + "\n"
