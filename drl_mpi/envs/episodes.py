"""Returns and lengths of whole games."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drl_mpi.envs.base import Array

Ended = tuple[NDArray[np.float64], NDArray[np.int64]]


class EpisodeTotals:
    """Adds up unclipped rewards and steps of n games, and hands them out where a game ends."""

    def __init__(self, num_envs: int) -> None:
        self._return = np.zeros(num_envs, np.float64)
        self._length = np.zeros(num_envs, np.int64)

    def restart(self) -> None:
        """All games start again."""
        self._return[:] = 0.0
        self._length[:] = 0

    def none(self) -> Ended:
        """The answer for rows that end no game: NaN and 0, both [n]."""
        return np.full_like(self._return, np.nan), np.zeros_like(self._length)

    def add(self, reward: Array, reset: NDArray[np.bool_], ended: NDArray[np.bool_]) -> Ended:
        """Count one step; all arguments are [n].

        reward: unclipped, of the transition into the row. reset: rows that begin a game and count
        nothing. ended: rows whose transition ended a game, by game over or time limit.
        Returns (return float64, length int64), NaN and 0 where no game ended.
        """
        self._return = np.where(reset, 0.0, self._return + reward)
        self._length = np.where(reset, 0, self._length + 1)
        return np.where(ended, self._return, np.nan), np.where(ended, self._length, 0)
