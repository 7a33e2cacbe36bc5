"""Replay of whole unrolls, for off-policy actor-critics (Espeholt et al. 2018, section 5.2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from drl_mpi.experience.batch import Batch, Fields
from drl_mpi.experience.rng import pack_rng, unpack_rng
from drl_mpi.experience.stored import pieces
from drl_mpi.experience.unroll import PER_ENVIRONMENT, UnrollShape


class UnrollReplay:
    """The newest unrolls of single environments, sampled uniformly with replacement.

    Args:
        shape: of the unrolls; ``envs`` is ignored, every environment's unroll is one entry.
        capacity: entries; the paper keeps 10,000.
        rng: decides what is sampled.

    Raises:
        ValueError: for a capacity below 1.
    """

    def __init__(self, shape: UnrollShape, capacity: int, rng: np.random.Generator) -> None:
        if capacity < 1:
            raise ValueError(f"replay capacity is {capacity} unrolls; it must be at least 1")
        self.capacity = capacity
        self.size = 0
        self._next = 0
        self._rng = rng
        self._names = PER_ENVIRONMENT + (("state",) if shape.state_shape else ())
        one = UnrollShape(shape.spec, shape.length, 1, shape.state_shape).record()
        layout = {field.name: field for field in one.fields}
        # Entry first: one environment's unroll is contiguous, so that adding and sampling
        # touch memory in long runs.
        self._rows: dict[str, npt.NDArray[np.generic]] = {
            name: np.zeros(
                (capacity, layout[name].shape[0], *layout[name].shape[2:]), layout[name].dtype
            )
            for name in self._names
        }

    def add(self, fields: Fields) -> None:
        """Stores each environment of an unroll; the oldest entries give way."""
        n = fields["actions"].shape[1]
        entries = (self._next + np.arange(n)) % self.capacity
        for name in self._names:
            self._rows[name][entries] = np.swapaxes(fields[name], 0, 1)
        self._next = int(self._next + n) % self.capacity
        self.size = min(self.size + n, self.capacity)

    def sample(self, count: int) -> dict[str, npt.NDArray[np.generic]]:
        """Fields of ``count`` stored unrolls, ``[rows, count, ...]`` as in the record.

        Raises:
            ValueError: when nothing is stored.
        """
        if self.size == 0:
            raise ValueError("the replay is empty: add unrolls before sampling")
        entries = self._rng.integers(self.size, size=count)
        return {name: np.swapaxes(self._rows[name][entries], 0, 1) for name in self._names}

    def fill(self, batch: Batch, column: int) -> None:
        """Writes samples into a batch's columns from ``column`` to its end."""
        count = batch.shape.envs - column
        if count:
            batch.write(column, self.sample(count))

    def state(self) -> dict[str, Any]:
        """The stored entries, oldest position included, and the sampler's RNG."""
        return {
            "rows": {name: rows[: self.size] for name, rows in self._rows.items()},
            "next": self._next,
            "rng": pack_rng(self._rng),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``.

        Raises:
            ValueError: when it holds more entries than fit, or entries of another shape.
            OSError: for rows that cannot be read from an open file. Some have been replaced.
        """
        rows = state["rows"]
        size = len(rows["actions"])
        if size > self.capacity:
            raise ValueError(
                f"the checkpoint's replay holds {size} unrolls, this one {self.capacity}; "
                "raise --replay-capacity"
            )
        for name, ours in self._rows.items():
            wanted = (size, *ours.shape[1:])
            if rows[name].shape != wanted or rows[name].dtype != ours.dtype:
                raise ValueError(
                    f"the checkpoint's replay has {name} of {rows[name].dtype} "
                    f"{rows[name].shape}, this run's unrolls need {ours.dtype} {wanted}"
                )
        # A full store goes on where it was, entry by entry, so that the same samples follow. In a
        # larger one the oldest entry comes first.
        oldest = int(state["next"]) % max(size, 1)
        full = size == self.capacity
        first = 0 if full else oldest
        for name, ours in self._rows.items():
            for piece, values in pieces(rows[name]):
                ours[(np.arange(piece.start, piece.stop) - first) % size] = values
        self.size = size
        self._next = oldest if full else size
        unpack_rng(self._rng, state["rng"])
