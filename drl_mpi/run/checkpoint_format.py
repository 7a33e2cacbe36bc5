"""What a checkpoint file is: the seal in front, the limits, the HDF5 types and chunks inside.

A checkpoint is a plain HDF5 file (docs/checkpoint.md shows its layout) with 512 bytes in front, the
*seal*: a format name, a version, the size and the SHA-256 of everything behind it. HDF5 skips such
a "user block" by itself. It is there because HDF5 alone does not notice all damage: of 1,500 files
with random bits flipped, 28-174 loaded without an error, some with other numbers in them (measured
with HDF5 2.0, fletcher32 on). With the seal, no byte reaches HDF5's parser unless all are right.
SHA-256 runs at 1.2 GiB/s where the processor helps (blake2b: 0.8), and `sha256sum` can check it.

The seal finds damage, not malice: who makes a file can seal it. Hence the checks of
drl_mpi/run/checkpoint_read.py.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

FORMAT = "drl_mpi checkpoint"
VERSION = 1

SEAL_BYTES = 512
"""The smallest user block that HDF5 knows."""
LIBRARY = ("v110", "v110")
"""HDF5 1.10's file format: its metadata carry checksums, and every reader since 2016 knows it."""
COMPACT_BYTES = 10 * 1024
"""Smaller arrays live in the object header, under its checksum (HDF5's own limit is 64 KiB)."""
CHUNK_BYTES = 512 * 1024
"""Larger ones in chunks of at most this: 74 frames of 84 x 84. Two fit into HDF5's 1 MiB cache."""
MAX_CHUNK_BYTES = 1024 * 1024
COMPRESS_BYTES = 1024 * 1024
"""uint8 arrays (frames) from this size are compressed with LZF; floats do not shrink."""
MAX_DEPTH = 16
MAX_OBJECTS = 100_000
MAX_NAME_BYTES = 255
MAX_TEXT_BYTES = 64 * 1024 * 1024
MAX_RANK = 32
"""HDF5's own limit."""
MAX_RATIO = 100
"""LZF writes at best 3 bytes for 264, and 524,288 zeros came out 87.8 times smaller (measured).
A file that claims to hold more than this many times its size lies."""
FREE_BYTES = 64 * 1024 * 1024
"""Files may claim this much whatever their size."""

_SEAL = re.compile(rb"drl_mpi checkpoint 1\nbytes (\d{1,19})\nsha256 ([0-9a-f]{64})\n\0*")
_READ_BYTES = 1024 * 1024


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the one-line message says why and what to do."""


def numeric_types() -> list[tuple[np.dtype[Any], Any]]:
    """All array types that a checkpoint may hold, as NumPy and as HDF5 know them."""
    codes = ["?", "i1", "u1"]
    for code in ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8"):
        codes += ["<" + code, ">" + code]
    return [(np.dtype(code), h5py.h5t.py_create(np.dtype(code))) for code in codes]


TYPES = numeric_types()


def check_name(name: object) -> str:
    """A key of a state as HDF5 can hold it; ValueError otherwise."""
    if not isinstance(name, str):
        raise ValueError(f"key {name!r} is a {type(name).__name__}; keys are strings")
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(
            f"key {name[:80]!r} is not a name; "
            'keys are not empty, not "." or "..", and hold neither "/" nor NUL'
        )
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"key {name[:80]!r} is not valid Unicode; rename it") from None
    if size > MAX_NAME_BYTES:
        raise ValueError(
            f"key {name[:40]!r}... has {size} bytes; at most {MAX_NAME_BYTES} are allowed"
        )
    return name


def chunk_shape(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Chunks of whole rows of axis 0 (or, if one row is too large, of later axes), evenly filled.

    An array that needs n chunks along an axis gets n equal ones: 75 frames are stored as 38 + 38,
    not as 74 + 74.
    """
    chunk = [1] * len(shape)
    for axis, length in enumerate(shape):
        row = itemsize * math.prod(shape[axis + 1 :])
        if row <= CHUNK_BYTES:
            pieces = -(-length // (CHUNK_BYTES // row))
            chunk[axis:] = [-(-length // pieces), *shape[axis + 1 :]]
            break
    return tuple(chunk)


# The seal


def write_seal(fd: int) -> None:
    """Put the seal in front of the closed HDF5 file behind `fd`."""
    size = os.fstat(fd).st_size - SEAL_BYTES
    text = f"{FORMAT} {VERSION}\nbytes {size}\nsha256 {_digest(fd)}\n".encode()
    left = memoryview(text.ljust(SEAL_BYTES, b"\0"))
    while left:
        left = left[os.pwrite(fd, left, SEAL_BYTES - len(left)) :]


def claimed_checksum(seal: bytes) -> str:
    """The SHA-256 in a seal; empty for something else."""
    match = _SEAL.fullmatch(seal)
    return match[2].decode() if match else ""


def check_seal(fd: int) -> int:
    """The size of the file in bytes, if it is whole; CheckpointError otherwise."""
    seal = os.pread(fd, SEAL_BYTES, 0)
    version = re.match(rb"drl_mpi checkpoint (\d{1,9})\n", seal)
    if version and int(version[1]) != VERSION:
        raise CheckpointError(
            f"has format version {int(version[1])}, and this drl_mpi reads version {VERSION}; "
            "load it with the drl_mpi that wrote it"
        )
    match = _SEAL.fullmatch(seal)
    if not match or len(seal) != SEAL_BYTES:
        raise CheckpointError(
            f"is no drl_mpi checkpoint, or its first {SEAL_BYTES} bytes are damaged; use another"
        )
    found, claimed = os.fstat(fd).st_size - SEAL_BYTES, int(match[1])
    if found != claimed:
        raise CheckpointError(
            f"is {'truncated' if found < claimed else 'too long'}: {found} bytes after the seal "
            f"instead of {claimed}; use an older one"
        )
    if _digest(fd) != match[2].decode():
        raise CheckpointError(
            "is damaged or was changed by another program (its SHA-256 is not the one in its "
            "seal); use an older one, or write it anew with drl_mpi.run.checkpoint.save"
        )
    return found + SEAL_BYTES


def _digest(fd: int) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    position = SEAL_BYTES
    while count := os.preadv(fd, [buffer], position):
        digest.update(buffer[:count])
        position += count
    return digest.hexdigest()


# The file below HDF5


class FileBelow:
    """The open file `fd` as HDF5's storage, in place of HDF5's own driver, for two reasons.

    - HDF5 takes no locks on it. On Lustre and GPFS these fail, and they would protect nothing:
      only one process knows the temporary file, and a finished checkpoint never changes.
    - When a write fails (disk full), HDF5's own driver cannot close the file any more, and the
      process dies of a segmentation fault at its next garbage collection or exit (measured with
      HDF5 2.0 and RLIMIT_FSIZE). Here the error is kept for `check`, and the little that HDF5
      still writes until it has closed the file stays in memory.

    As fast as HDF5's driver: 0.8 GB in 0.6 s from the page cache, both.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._position = 0
        self._error: BaseException | None = None
        self._unwritten: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raise the first error of a write."""
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            ends = [start + len(data) for start, data in self._unwritten]
            offset += max([os.fstat(self._fd).st_size, *ends])
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Only here because h5py knows a file by it; HDF5 calls `readinto`."""
        raise NotImplementedError

    def readinto(self, buffer: memoryview) -> int:
        view = memoryview(buffer).cast("B")
        count = os.preadv(self._fd, [view], self._position)
        if self._unwritten:
            count = self._read_unwritten(view, count)
        if not count and len(view):
            raise OSError(errno.EIO, "read past the end of the checkpoint")
        self._position += count
        return count

    def _read_unwritten(self, view: memoryview, count: int) -> int:
        view[count:] = bytes(len(view) - count)
        for start, data in self._unwritten:
            first = max(start, self._position)
            last = min(start + len(data), self._position + len(view))
            if first < last:
                view[first - self._position : last - self._position] = data[
                    first - start : last - start
                ]
        return len(view)

    def write(self, data: memoryview) -> int:
        count = len(data)
        if self._error is None:
            try:
                count = os.pwrite(self._fd, data, self._position)
            except BaseException as error:  # also KeyboardInterrupt: never into HDF5
                self._error = error
        if self._error is not None:
            self._unwritten.append((self._position, bytes(data)))
        self._position += count
        return count

    def truncate(self, size: int) -> int:
        try:
            os.ftruncate(self._fd, size)
        except BaseException as error:
            self._error = self._error or error
        return size

    def flush(self) -> None:
        """Nothing is held back."""
