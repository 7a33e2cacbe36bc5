"""Rows of a checkpoint that may not fit into memory a second time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

PIECE_BYTES = 4 * 1024 * 1024


@runtime_checkable
class StoredRows(Protocol):
    """Rows in memory (an ``np.ndarray``), or in an open file that a slice is read from."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]: ...


def pieces(rows: StoredRows) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """All rows in order, a few MiB at a time, and which ones they are."""
    row_bytes = math.prod(rows.shape[1:]) * rows.dtype.itemsize
    step = max(1, PIECE_BYTES // max(1, row_bytes))
    for start in range(0, len(rows), step):
        piece = slice(start, min(start + step, len(rows)))
        yield piece, rows[piece]
