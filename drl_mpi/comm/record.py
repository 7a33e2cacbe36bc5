"""Records: named fields in one contiguous byte buffer.

A record is the message on the wire, the row of a replay and the layout of a dataset at once, so
nothing is pickled or converted on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
"""Bytes to which every field and every buffer is aligned: a cache line, and an AVX-512 vector."""


@dataclass(frozen=True, slots=True)
class Field:
    """One named array of a record.

    Args:
        name: identifier, unique within its record.
        dtype: NumPy dtype string without Python objects, e.g. ``"uint8"``.
        shape: shape of the array; ``()`` is a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that the field's values take, without padding."""
        return int(prod(self.shape)) * np.dtype(self.dtype).itemsize


class Record:
    """The layout of a record: an ordered list of fields and their offsets.

    Args:
        fields: in the order in which they lie in memory.

    Raises:
        ValueError: for duplicate names, negative dimensions, or dtypes that hold Python objects.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self.offsets: dict[str, int] = {}
        end = 0
        for field in self.fields:
            if field.name in self.offsets:
                raise ValueError(f"field name {field.name!r} stands twice; names must be unique")
            if np.dtype(field.dtype).hasobject:
                raise ValueError(f"field {field.name!r} has dtype {field.dtype!r}: use plain data")
            if any(size < 0 for size in field.shape):
                raise ValueError(f"field {field.name!r} has shape {field.shape}: use sizes >= 0")
            self.offsets[field.name] = end
            end = _aligned(end + field.nbytes)
        self.nbytes = max(end, ALIGNMENT)

    def views(self, buffer: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Arrays over a buffer's bytes, without a copy.

        Args:
            buffer: uint8 ``[nbytes]``, contiguous.

        Returns:
            Field name -> array of the field's dtype and shape.
        """
        if buffer.shape != (self.nbytes,) or buffer.dtype != np.uint8:
            raise ValueError(
                f"buffer has dtype {buffer.dtype} and shape {buffer.shape}; "
                f"this record needs uint8 ({self.nbytes},)"
            )
        return {
            field.name: buffer[self.offsets[field.name] : self.offsets[field.name] + field.nbytes]
            .view(field.dtype)
            .reshape(field.shape)
            for field in self.fields
        }


class Slot:
    """One record's bytes, its views, and whether MPI owns them at the moment.

    Args:
        record: the layout.
    """

    __slots__ = ("_fields", "buffer", "busy")

    def __init__(self, record: Record) -> None:
        self.buffer = aligned_bytes(record.nbytes)
        self._fields = record.views(self.buffer)
        self.busy = False

    @property
    def fields(self) -> dict[str, npt.NDArray[Any]]:
        """Field name -> array, to read or write.

        Raises:
            RuntimeError: while MPI owns the buffer (between start and completion of a request).
        """
        if self.busy:
            raise RuntimeError("this slot belongs to an MPI request until it completes")
        return self._fields

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.fields[name]


def aligned_bytes(nbytes: int) -> npt.NDArray[np.uint8]:
    """Zeroed bytes whose address is a multiple of ``ALIGNMENT``: uint8 ``[nbytes]``."""
    raw = np.zeros(nbytes + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
