"""Write a state to an HDF5 file, slab by slab, and read all of it back."""

from __future__ import annotations

import dataclasses
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5p, h5s, h5t, h5z

from drl_mpi.run import checkpoint_format as form
from drl_mpi.run import checkpoint_read as reading
from drl_mpi.run.checkpoint_format import CheckpointError

State: TypeAlias = Mapping[str, Any]
"""Names to values. A value is another such mapping, an np.ndarray (bool, int, uint, float of 1 to
8 bytes; any shape; either byte order), an `ArraySource`, a NumPy scalar of these types, a Python
bool, int (64 bits), float, or str. Names may hold dots ("body.0.weight") but no "/"."""


@runtime_checkable
class ArraySource(Protocol):
    """An array that is made piece by piece while it is saved, so that a replay of many GB needs no
    second copy. `load` gives it back as an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """At least one axis."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def blocks(self) -> Iterable[np.ndarray[Any, Any]]:
        """Successive pieces along axis 0, of any lengths; called once. A piece is used up before
        the next one is asked for, so they may share a buffer."""


@dataclasses.dataclass
class Item:
    """One object of the file. A group has no data; a string has bytes."""

    path: tuple[str, ...]
    data: np.ndarray[Any, Any] | ArraySource | bytes | None
    marked: bool = False
    """A 0-d array rather than a scalar."""
    sums: list[int] = dataclasses.field(default_factory=list)
    """CRC-32 of each slab as it was written: what reading back is compared with. An `ArraySource`
    cannot be asked twice."""

    @property
    def where(self) -> str:
        return "/" + "/".join(self.path)

    @property
    def array(self) -> np.ndarray[Any, Any] | ArraySource:
        assert self.data is not None
        assert not isinstance(self.data, bytes)
        return self.data

    @property
    def size(self) -> int:
        if self.data is None or isinstance(self.data, bytes):
            return len(self.data or b"")
        return math.prod(self.data.shape) * self.data.dtype.itemsize


def flatten(state: State) -> list[Item]:
    """The objects of a state, parents first, names sorted. Nothing is written before all of them
    are checked here: ValueError, TypeError."""
    items = list(_items(state, ()))
    if len(items) > form.MAX_OBJECTS:
        raise ValueError(
            f"the state has {len(items)} values; at most {form.MAX_OBJECTS} are allowed; join them"
        )
    return items


def _items(state: State, path: tuple[str, ...]) -> Iterator[Item]:
    if not isinstance(state, Mapping):
        raise TypeError(f"a state is a mapping, not a {type(state).__name__}")
    if len(path) >= form.MAX_DEPTH:
        raise ValueError(f"/{'/'.join(path)} is nested deeper than {form.MAX_DEPTH}; flatten it")
    for name in sorted(form.check_name(key) for key in state):
        item = _item((*path, name), state[name])
        yield item
        if item.data is None:
            yield from _items(state[name], item.path)


def _item(path: tuple[str, ...], value: Any) -> Item:
    item = Item(path, None)
    if isinstance(value, Mapping):
        return item
    if isinstance(value, str):
        item.data = _text(item.where, value)
        return item
    if isinstance(value, int) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**64:
            raise ValueError(
                f"{item.where} is {value}: an int has 64 bits; save a larger one as a string"
            )
        value = np.int64(value) if value < 2**63 else np.uint64(value)
    item.marked = isinstance(value, np.ndarray) and value.ndim == 0
    if isinstance(value, bool | float | np.generic | np.ndarray):
        item.data = np.asarray(value)
    elif isinstance(value, ArraySource):
        item.data = value
    if item.data is None or np.dtype(item.array.dtype) not in [dtype for dtype, _ in form.TYPES]:
        kind = type(value).__name__ if item.data is None else f"array of {item.array.dtype}"
        raise TypeError(
            f"{item.where} is a {kind}; allowed are mappings, str, bool, int, float, and NumPy "
            "arrays of bool, int, uint or float up to 8 bytes: convert it (tensors: .numpy())"
        )
    rank = len(item.array.shape)
    if rank > form.MAX_RANK or (rank == 0 and not isinstance(item.data, np.ndarray)):
        raise ValueError(f"{item.where} has {rank} axes; at most {form.MAX_RANK}, a source 1")
    return item


def _text(where: str, value: str) -> bytes:
    """UTF-8 with a NUL behind it: HDF5 knows no empty strings, and NULs inside stay."""
    try:
        data = value.encode() + b"\0"
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} is not valid Unicode: {error}; mend the string") from None
    if len(data) > form.MAX_TEXT_BYTES:
        raise ValueError(
            f"{where} has {len(data)} bytes; at most {form.MAX_TEXT_BYTES} are allowed"
        )
    return data


# Write and verify


def write_verified(path: Path, items: list[Item], compress: bool) -> None:
    """Write the new file `path`, read it back, and synchronise it to the disk."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        below = form.FileBelow(fd)
        try:
            with h5py.File(below, "w", libver=form.LIBRARY, userblock_size=form.SEAL_BYTES) as file:
                _write(file, items, compress, below)
        except Exception:
            below.check()  # the disk's reason rather than what HDF5 made of it
            raise
        below.check()
        form.write_seal(fd)
        _verify(fd, items)
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(file: Any, items: list[Item], compress: bool, below: form.FileBelow) -> None:
    file.attrs["format"] = np.bytes_(form.FORMAT)
    file.attrs["version"] = np.int64(form.VERSION)
    untimed = h5p.create(h5p.GROUP_CREATE)
    untimed.set_obj_track_times(False)  # equal states, equal files
    groups: dict[tuple[str, ...], Any] = {(): h5g.open(file.id, b"/")}
    for item in items:
        parent, name = groups[item.path[:-1]], item.path[-1].encode()
        if item.data is None:
            groups[item.path] = h5g.create(parent, name, gcpl=untimed)
        elif isinstance(item.data, bytes):
            _write_text(parent, name, item.data)
        else:
            _write_array(parent, name, item, compress, below)
        below.check()


def _write_text(parent: Any, name: bytes, data: bytes) -> None:
    kind = h5t.C_S1.copy()
    kind.set_size(len(data))
    kind.set_cset(h5t.CSET_UTF8)
    kind.set_strpad(h5t.STR_NULLTERM)
    dataset = h5d.create(parent, name, kind, h5s.create(h5s.SCALAR), _created((), len(data)))
    dataset.write(h5s.ALL, h5s.ALL, np.array(data, f"S{len(data)}"), kind)


def _write_array(
    parent: Any, name: bytes, item: Item, compress: bool, below: form.FileBelow
) -> None:
    shape, dtype = tuple(item.array.shape), np.dtype(item.array.dtype)
    created = _created(shape, item.size, dtype.itemsize)
    if created.get_layout() == h5d.CHUNKED:
        if compress and dtype == np.uint8 and item.size >= form.COMPRESS_BYTES:
            created.set_filter(h5z.FILTER_LZF, h5z.FLAG_OPTIONAL, ())
        created.set_fletcher32()  # last: read first, so nothing damaged is unpacked
    space = h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
    dataset = h5d.create(parent, name, h5t.py_create(dtype), space, created)
    if item.marked:
        mark = h5a.create(dataset, reading.MARK, h5t.STD_U8LE, h5s.create(h5s.SCALAR))
        mark.write(np.array(1, np.uint8))
    for start, slab in _slabs(item):
        _transfer(dataset, start, slab, write=True)
        item.sums.append(_checksum(slab))
        below.check()


def _created(shape: tuple[int, ...], nbytes: int, itemsize: int = 1) -> Any:
    """Where the data go: small ones into the object header, large ones into chunks."""
    created = h5p.create(h5p.DATASET_CREATE)
    created.set_obj_track_times(False)
    if nbytes <= form.COMPACT_BYTES:
        created.set_layout(h5d.COMPACT)
    elif shape:
        created.set_layout(h5d.CHUNKED)
        created.set_chunk(form.chunk_shape(shape, itemsize))
    return created


def _slab_rows(shape: tuple[int, ...], itemsize: int) -> int:
    """Whole chunks, about 4 MiB of them, are written and read back at a time."""
    rows = form.chunk_shape(shape, itemsize)[0]
    return rows * max(1, 4 * 1024 * 1024 // (rows * itemsize * math.prod(shape[1:])))


def _slabs(item: Item) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """The array in contiguous slabs along axis 0, each with the row it starts at."""
    data = item.array
    shape, dtype = tuple(data.shape), np.dtype(data.dtype)
    if isinstance(data, np.ndarray):
        if not shape:
            yield 0, np.ascontiguousarray(data).reshape(())
        elif data.size:
            step = _slab_rows(shape, dtype.itemsize)
            for start in range(0, shape[0], step):
                yield start, np.ascontiguousarray(data[start : start + step])
        return
    rows = _slab_rows(shape, dtype.itemsize) if item.size else 1
    slab = np.empty((min(rows, shape[0]), *shape[1:]), dtype)
    start = filled = 0
    for block in data.blocks():
        if block.shape[1:] != shape[1:] or block.dtype != dtype:
            raise ValueError(
                f"{item.where}: a block is {block.dtype} {block.shape}, allowed is {dtype} with "
                f"rows of {shape[1:]}; mend its blocks()"
            )
        if start + filled + len(block) > shape[0]:
            raise ValueError(f"{item.where}: blocks() gives more than {shape[0]} rows; mend it")
        while len(block):
            part = block[: len(slab) - filled]
            slab[filled : filled + len(part)] = part
            filled += len(part)
            block = block[len(part) :]
            if filled == len(slab):
                if item.size:
                    yield start, slab
                start, filled = start + filled, 0
    if start + filled != shape[0]:
        raise ValueError(f"{item.where}: blocks() gives {start + filled} of {shape[0]} rows")
    if filled and item.size:
        yield start, slab[:filled]


def _transfer(dataset: Any, start: int, slab: np.ndarray[Any, Any], *, write: bool) -> None:
    spaces = reading.slab_spaces(dataset, start, slab)
    (dataset.write if write else dataset.read)(*spaces, slab)


def _checksum(slab: np.ndarray[Any, Any]) -> int:
    return zlib.crc32(slab.reshape(-1).view(np.uint8).data)


def _verify(fd: int, items: list[Item]) -> None:
    """Read the closed file as `load` does, and compare all of it with what was written."""
    wanted = {item.path: item for item in items}
    with reading.open_checked(fd) as nodes:
        for node in nodes:
            item = wanted.pop(node.path, None)
            if item is None or not _equal(node, item):
                name = "/" + "/".join(node.path)
                raise CheckpointError(
                    f"{name} did not read back equal: the disk is not to be trusted"
                )
    if wanted:
        raise CheckpointError(f"{next(iter(wanted.values())).where} was written but is not there")


def _equal(node: reading.Node, item: Item) -> bool:
    if item.data is None:
        return node.dataset is None
    if isinstance(item.data, bytes):
        return node.dtype is None and reading.read(node).encode() + b"\0" == item.data
    if (node.dtype, node.shape, node.marked) != (item.array.dtype, item.array.shape, item.marked):
        return False
    if not item.size:
        return True
    shape, dtype = node.shape, np.dtype(item.array.dtype)
    rows = _slab_rows(shape, dtype.itemsize) if shape else 1
    buffer = np.empty((min(rows, shape[0]), *shape[1:]) if shape else (), dtype)
    for index, expected in enumerate(item.sums):
        start = index * rows
        slab = buffer[: shape[0] - start] if shape else buffer
        _transfer(node.dataset, start, slab, write=False)
        if _checksum(slab) != expected:
            return False
    return len(item.sums) == (-(-shape[0] // rows) if shape else 1)
