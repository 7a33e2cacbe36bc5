"""A parameter server's shard: which gradients it accepts, and what it counts. No MPI, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from drl_mpi.updating.shard_optimizers import ShardOptimizer

BUCKETS = 12
"""Of the staleness histogram: 0, 1, 2 to 3, 4 to 7, ... and the last for all that is older."""

Vector = npt.NDArray[np.float32]


class PoisonedError(RuntimeError):
    """A gradient would make a parameter NaN or infinite: nothing that follows could be trusted."""


@dataclass(frozen=True)
class ShardCounts:
    """What servers tell with every answer, since the start of this process."""

    applied: int
    """Gradients applied."""
    stale: int
    """Gradients dropped as too old."""
    staleness_sum: int
    """Versions between pull and push, summed over all gradients that came."""
    staleness_max: int
    histogram: tuple[int, ...]
    """Gradients that came, by staleness; see ``BUCKETS``."""

    def as_numbers(self) -> list[int]:
        """For the answer's ``counts``."""
        return [
            self.applied, self.stale, self.staleness_sum, self.staleness_max, *self.histogram,
        ]  # fmt: skip

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> ShardCounts:
        """The reverse of ``as_numbers``."""
        applied, stale, total, largest, *histogram = map(int, numbers[: 4 + BUCKETS])
        return cls(applied, stale, total, largest, tuple(histogram))


class Shard:
    """Applies gradients that are not too old (Nair et al. 2015, section 4.4).

    Staleness is measured here, per shard: the version now minus the version that the gradient was
    computed from.

    Args:
        optimizer: of this shard.
        max_staleness: gradients older than this many versions are dropped and counted.
    """

    def __init__(self, optimizer: ShardOptimizer, max_staleness: int) -> None:
        self.version = 0
        """Gradients applied, earlier runs included."""
        self.steps = 0
        """Agent decisions that learners reported, whatever became of their gradients."""
        self.pushes: dict[int, int] = {}
        """Client -> gradients that came from it."""
        self._optimizer = optimizer
        self._max_staleness = max_staleness
        self._applied = self._stale = self._staleness_sum = self._staleness_max = 0
        self._histogram = [0] * BUCKETS

    def admit(self, client: int, version: int) -> bool:
        """Counts a gradient that came, and tells whether it is young enough to be applied."""
        staleness = self.version - version
        self.pushes[client] = self.pushes.get(client, 0) + 1
        self._staleness_sum += staleness
        self._staleness_max = max(self._staleness_max, staleness)
        self._histogram[min(staleness.bit_length(), BUCKETS - 1)] += 1
        if staleness > self._max_staleness:
            self._stale += 1
            return False
        return True

    def apply(
        self, source: Vector, target: Vector, gradient: Vector, rate: float, client: int
    ) -> None:
        """Makes the next version in ``target`` from the newest in ``source``: float32 ``[size]``.

        Raises:
            PoisonedError: names the client; ``target`` must not become a version.
        """
        if not self._optimizer.step(source, target, gradient, rate):
            where = int(np.flatnonzero(~np.isfinite(target))[0])
            raise PoisonedError(
                f"the gradient of rank {client} (number {self.pushes.get(client, 0)} from there) "
                f"would make parameter {where} of this shard {target[where]} at version "
                f"{self.version + 1}; gradient there: {gradient[where]}; lower --learning-rate, or "
                "look for rewards or observations that are not finite"
            )
        self.version += 1
        self._applied += 1

    @property
    def counts(self) -> ShardCounts:
        """See ``ShardCounts``."""
        return ShardCounts(
            self._applied,
            self._stale,
            self._staleness_sum,
            self._staleness_max,
            tuple(self._histogram),
        )

    def state(self, vector: Vector) -> dict[str, Any]:
        """The parameters, the optimiser's slots and the counters."""
        return {
            "vector": vector,
            "slots": self._optimizer.slots(),
            "optimizer_steps": self._optimizer.steps,
            "version": self.version,
            "steps": self.steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``; the vector is the caller's to take."""
        if state["slots"]:  # at the first start there are none
            self._optimizer.restore(state["slots"], int(state["optimizer_steps"]))
        self.version, self.steps = int(state["version"]), int(state["steps"])
