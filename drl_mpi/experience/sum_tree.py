"""Sums over a binary tree: draw an index in proportion to its value, in O(log capacity).

The data structure of proportional prioritised replay (Schaul et al. 2016, appendix B.2.1).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt


class SumTree:
    """``capacity`` values >= 0, all 0 at first, and every sum that is needed to search them.

    Node i has the children 2i and 2i + 1; node 1 is the root. Every node is its children's sum as
    of now, never a running difference, so that rounding does not pile up and the tree is a
    function of its values alone: equal values, equal tree, bit for bit.

    Args:
        capacity: number of values; the indices are 0 .. capacity - 1.

    Attributes:
        limit: the largest value allowed; the sum of all then stays finite.

    Raises:
        ValueError: for a capacity below 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"sum tree capacity is {capacity}; it must be at least 1")
        self.capacity = capacity
        self._first = _power_of_two(capacity)
        self._nodes = np.zeros(2 * self._first)
        self.limit = sys.float_info.max / self._first

    @staticmethod
    def nbytes(capacity: int) -> int:
        """Bytes that a tree of this capacity takes: 16 to 32 per value."""
        return 2 * _power_of_two(capacity) * 8

    @property
    def total(self) -> float:
        """Sum of all values."""
        return float(self._nodes[1])

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """All values, float64 ``[capacity]``: a view to read, not to write."""
        view = self._nodes[self._first : self._first + self.capacity]
        view.flags.writeable = False
        return view

    def set(self, indices: npt.ArrayLike, values: npt.ArrayLike) -> None:
        """Sets values; of an index that stands there several times the last one wins.

        Args:
            indices: integers of any shape.
            values: of the same shape, or one for all. Finite, >= 0.

        Raises:
            IndexError: for indices outside [0, capacity).
            ValueError: for other values or shapes. Nothing is changed then.
        """
        nodes = self._node(indices).reshape(-1)
        new = np.asarray(values, dtype=np.float64)
        if new.shape not in ((), np.shape(indices)):
            raise ValueError(
                f"values have shape {new.shape}, indices {np.shape(indices)}; give one value for "
                "each index, or one for all"
            )
        # NaN compares false.
        bad = ~((new >= 0) & (new <= self.limit))
        if bad.any():
            raise ValueError(
                f"value {new[bad].flat[0]} cannot stand in a sum tree; allowed: 0 to "
                f"{self.limit:.3g}; if it is a priority, see whether the loss has diverged"
            )
        # NumPy assigns in order, so the last of repeated indices stays.
        self._nodes[nodes] = new.reshape(-1)
        for _ in range(self._first.bit_length() - 1):
            nodes = nodes >> 1
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def get(self, indices: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Values of these indices, float64 of the same shape.

        Raises:
            IndexError: for indices outside [0, capacity).
        """
        return np.asarray(self._nodes[self._node(indices)])

    def find(self, targets: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """For each target the index whose values' partial sum first exceeds it.

        A target drawn uniformly from [0, total) finds index i with probability value[i] / total.

        Args:
            targets: floats of any shape in [0, total).

        Returns:
            int64 of the same shape. Never an index whose value is 0, whatever the rounding.

        Raises:
            ValueError: for targets outside [0, total).
        """
        left_over = np.array(targets, dtype=np.float64)
        bad = ~((left_over >= 0) & (left_over < self.total))
        if bad.any():
            raise ValueError(
                f"target {left_over[bad].flat[0]} lies outside [0, {self.total}), the sum tree's "
                "total; " + ("draw from that range" if self.total else "set values before drawing")
            )
        node = np.ones(left_over.shape, dtype=np.int64)
        for _ in range(self._first.bit_length() - 1):
            left = self._nodes[2 * node]
            # left + right is rounded, so a target may exceed what the right side holds. It then
            # ends at the last value that is not 0: an empty side is never entered.
            right = (left_over >= left) & (self._nodes[2 * node + 1] > 0)
            left_over = np.where(right, left_over - left, left_over)
            node = 2 * node + right
        return np.asarray(node - self._first)

    def _node(self, indices: npt.ArrayLike) -> npt.NDArray[Any]:
        """The leaves of indices; int64 of the same shape."""
        index = np.asarray(indices)
        if index.size == 0:
            return np.zeros(index.shape, dtype=np.int64)
        if not np.issubdtype(index.dtype, np.integer):
            raise IndexError(f"indices have dtype {index.dtype}; give integers")
        bad = (index < 0) | (index >= self.capacity)
        if bad.any():
            raise IndexError(
                f"index {index[bad].flat[0]} lies outside the sum tree; allowed: 0 to "
                f"{self.capacity - 1}"
            )
        return np.asarray(index.astype(np.int64) + self._first)


def _power_of_two(capacity: int) -> int:
    """The smallest that is not below ``capacity``."""
    return 1 << (capacity - 1).bit_length()
