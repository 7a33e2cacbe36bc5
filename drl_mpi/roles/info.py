"""What learners tell one another with every update, as a row of numbers beside the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drl_mpi.experience.statistics import Statistics

MAX_RETURNS = 100
"""Returns that one row can report, the newest; that is what the mean over 100 games can use."""

_LEAD = 8
WIDTH = _LEAD + MAX_RETURNS


@dataclass(frozen=True)
class Summary:
    """What came with one update, over all learners."""

    lag_sum: float
    """Policy lag in versions, summed over the fresh unrolls."""
    lag_count: int
    """Fresh unrolls."""
    lag_max: float
    """Largest policy lag; NaN without fresh unrolls."""
    actor_waited_s: float
    actor_worked_s: float
    learner_waited_s: float
    learner_worked_s: float
    episodes: int
    """Games that ended."""
    returns: npt.NDArray[np.float32]
    """Unclipped returns of the newest of them, at most ``MAX_RETURNS`` per learner."""


class InfoWriter:
    """Fills this learner's row. Float32: flags, small counts and seconds of one update fit."""

    def __init__(self) -> None:
        self._row = np.zeros(WIDTH, dtype=np.float32)

    def write(
        self,
        batch: Statistics,
        version: int,
        *,
        waited_s: float,
        worked_s: float,
    ) -> npt.NDArray[np.float32]:
        """The row for an update of ``version`` with ``batch``: float32 ``[WIDTH]``."""
        now = batch.episode_returns[-MAX_RETURNS:]
        lags = version - batch.versions
        row = self._row
        row[:_LEAD] = (
            lags.sum() if lags.size else 0.0,
            lags.size,
            lags.max() if lags.size else 0.0,
            batch.waited_s,
            batch.worked_s,
            waited_s,
            worked_s,
            len(batch.episode_returns),
        )
        # NaN marks an empty place: other learners add 0 to it, so it stays one in the sum.
        row[_LEAD:] = np.nan
        row[_LEAD : _LEAD + len(now)] = now
        return row


def summarise(infos: npt.NDArray[np.float32]) -> Summary:
    """Reads all learners' rows: float32 ``[learners, WIDTH]``."""
    lead = infos[:, :_LEAD].astype(np.float64)
    lag_sum, lag_count, _, waited, worked, own_waited, own_worked, episodes = lead.sum(axis=0)
    returns = infos[:, _LEAD:]
    return Summary(
        lag_sum=lag_sum,
        lag_count=int(lag_count),
        lag_max=float(lead[:, 2].max()) if lag_count else float("nan"),
        actor_waited_s=waited,
        actor_worked_s=worked,
        learner_waited_s=own_waited,
        learner_worked_s=own_worked,
        episodes=int(episodes),
        # A game whose rewards are not finite has no return to show; whether to train on it is not
        # decided here.
        returns=returns[np.isfinite(returns)],
    )
