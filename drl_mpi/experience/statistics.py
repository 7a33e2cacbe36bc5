"""What travels with fresh experience beside the experience itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


class Statistics:
    """Sums up the unrolls that were consumed for one update. Every batch is one.

    Attributes:
        steps: agent decisions in them.
        versions: int64 ``[environments]``, the policy version that acted in each unroll.
        waited_s, worked_s: seconds that the actors behind them waited and worked.
        trainable: whether there is something to learn from; a replay may have to fill first.
        episode_returns: unclipped returns of the games that ended within them.
    """

    trainable = True

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forgets the previous update's."""
        self.steps = 0
        self.versions: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.waited_s = self.worked_s = 0.0
        self.episode_returns: list[float] = []

    def note(self, fields: Mapping[str, npt.NDArray[Any]]) -> None:
        """Takes down a fresh unroll's: fields as in ``UnrollShape.record``."""
        t_max, n = fields["actions"].shape
        self.steps += t_max * n
        self.versions = np.append(self.versions, np.repeat(fields["version"], n))
        self.waited_s += float(fields["waited_s"])
        self.worked_s += float(fields["worked_s"])
        ended = fields["episode_lengths"] > 0
        self.episode_returns += fields["episode_returns"][ended].tolist()

    def absorb(self, other: Statistics) -> None:
        """Takes over what another one took down, which then begins anew."""
        self.steps += other.steps
        self.versions = np.append(self.versions, other.versions)
        self.waited_s += other.waited_s
        self.worked_s += other.worked_s
        self.episode_returns += other.episode_returns
        other.begin()
