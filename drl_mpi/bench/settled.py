"""What a tuned run did, from its rows of progress.csv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from drl_mpi.acting.tuner import Setting
from drl_mpi.bench.runs import Row, throughput


@dataclass(frozen=True)
class Trace:
    """The tuner's way."""

    setting: Setting
    """At its end: that it settled on, or else the most frequent one of the last time."""
    settled_s: float | None
    """Seconds after the start from which on it was settled; ``None`` if it was not at the end."""
    first_settled_s: float | None
    """When it was settled for the first time, perhaps to go on later."""
    rate: float
    """Steps trained per second in the last time."""
    changes: list[tuple[float, Setting]]
    """The first setting, and every other one from when on it was seen."""


def setting_of(row: Row) -> Setting:
    """That was at work when a row was written."""
    return Setting(*(int(row[name]) for name in ("predictors", "trainers", "active_actors")))


def fixed(setting: Setting) -> list[str]:
    """Options of a job that keeps to a setting."""
    return [
        "--tune", "off", "--predictors", str(setting.predictors),
        "--trainers", str(setting.trainers), "--actors", str(setting.actors),
    ]  # fmt: skip


def settled_since(rows: Sequence[Row]) -> float | None:
    """The time from which on the tuner was settled; ``None`` if it is not at the end."""
    since = None
    for row in reversed(rows):
        if not row["settled"]:
            break
        since = row["time_s"]
    return since


def trace(rows: Sequence[Row], last_s: float = 60.0) -> Trace:
    """Reads a tuned run.

    Args:
        rows: of its progress.csv, 2 or more for a rate.
        last_s: seconds before its end that its rate is taken of.
    """
    settings = [setting_of(row) for row in rows]
    settled = settled_since(rows)
    end = rows[-1]["time_s"]
    last = [row for row in rows if row["time_s"] >= end - last_s]
    often = Counter(map(setting_of, last)).most_common(1)[0][0]
    return Trace(
        setting=often if settled is None else settings[-1],
        settled_s=settled,
        first_settled_s=next((row["time_s"] for row in rows if row["settled"]), None),
        rate=throughput(last) if len(last) > 1 else float("nan"),
        changes=[
            (rows[0]["time_s"], settings[0]),
            *(
                (row["time_s"], now)
                for row, (before, now) in zip(rows[1:], pairwise(settings))
                if now != before
            ),
        ],
    )
