"""What learners tell one another with every update, as a row of numbers beside the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drl_mpi.experience.batch import Batch

MAX_EPISODES = 64
"""Finished games that one row can report; more wait for the next update."""

_LEAD = 9
WIDTH = _LEAD + MAX_EPISODES


@dataclass(frozen=True)
class Summary:
    """One update, over all learners."""

    save: bool
    """Somebody wants a checkpoint."""
    stop: bool
    """Somebody wants to stop early."""
    lag_mean: float
    """Mean policy lag of the fresh unrolls, in versions; NaN if none was fresh."""
    lag_max: float
    actor_waited_s: float
    actor_worked_s: float
    learner_waited_s: float
    learner_worked_s: float
    returns: npt.NDArray[np.float32]
    """Unclipped returns of games that ended."""


class InfoWriter:
    """Fills this learner's row. Float32: flags, small counts and seconds of one update fit."""

    def __init__(self) -> None:
        self._row = np.zeros(WIDTH, dtype=np.float32)
        self._returns: list[float] = []

    def write(
        self,
        batch: Batch,
        version: int,
        *,
        waited_s: float,
        worked_s: float,
        save: bool,
        stop: bool,
    ) -> npt.NDArray[np.float32]:
        """The row for an update of ``version`` with ``batch``: float32 ``[WIDTH]``."""
        self._returns += batch.episodes.returns
        now, self._returns = self._returns[:MAX_EPISODES], self._returns[MAX_EPISODES:]
        fresh = batch.versions[batch.versions >= 0]
        lags = version - fresh
        row = self._row
        row[:_LEAD] = (
            save,
            stop,
            lags.sum() if fresh.size else 0.0,
            fresh.size,
            lags.max() if fresh.size else 0.0,
            batch.waited_s,
            batch.worked_s,
            waited_s,
            worked_s,
        )
        row[_LEAD:] = np.nan  # NaN is no return; it must not meet a sum, see ``summarise``
        row[_LEAD : _LEAD + len(now)] = now
        return row


def summarise(infos: npt.NDArray[np.float32]) -> Summary:
    """Reads all learners' rows: float32 ``[learners, WIDTH]``."""
    lead = infos[:, :_LEAD].astype(np.float64)
    save, stop, lag_sum, lag_count, _, waited, worked, own_waited, own_worked = lead.sum(axis=0)
    returns = infos[:, _LEAD:]
    return Summary(
        save=bool(save),
        stop=bool(stop),
        lag_mean=lag_sum / lag_count if lag_count else float("nan"),
        lag_max=float(lead[:, 4].max()) if lag_count else float("nan"),
        actor_waited_s=waited,
        actor_worked_s=worked,
        learner_waited_s=own_waited,
        learner_worked_s=own_worked,
        returns=returns[~np.isnan(returns)],
    )
