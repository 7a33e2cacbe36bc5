"""Read a checkpoint that anybody may have made: everything is refused that `save` never writes.

Before a dataset's data are touched, its links, type, layout, filters and each of its chunks are
checked, and what it claims to hold is compared with what the file has room for. What is left is
HDF5's own parser: a file made to exploit a bug in it cannot be told from a good one here.
"""

from __future__ import annotations

import dataclasses
import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5s, h5t, h5z

from drl_mpi.run import checkpoint_format as form
from drl_mpi.run.checkpoint_format import CheckpointError

MARK = b"ndarray"
"""The attribute that tells a 0-d array from a scalar."""

_LAYOUTS = {h5d.COMPACT: "compact", h5d.CONTIGUOUS: "contiguous", h5d.CHUNKED: "chunked"}


@dataclasses.dataclass(frozen=True)
class Node:
    """One checked object of a checkpoint."""

    path: tuple[str, ...]
    dataset: Any = None
    """h5py.h5d.DatasetID, or None for a group."""
    dtype: np.dtype[Any] | None = None
    """None for a string and for a group."""
    shape: tuple[int, ...] = ()
    marked: bool = False
    """Whether something 0-d is an array."""


class StoredArray:
    """An array that stays in an open checkpoint: slices of it are read as they are asked for."""

    def __init__(self, node: Node) -> None:
        assert node.dtype is not None
        self._dataset = node.dataset
        self.shape = node.shape
        self.dtype = node.dtype

    __iter__ = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray[Any, Any]:
        """Successive rows of axis 0.

        Raises OSError if they cannot be read, TypeError for anything but a slice without a step.
        """
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError(f"[{rows}] of an array in a checkpoint: only successive rows, [a:b]")
        start, stop, _ = rows.indices(len(self))
        found = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        if found.size:
            self._dataset.read(*slab_spaces(self._dataset, start, found), found)
        return found


def slab_spaces(dataset: Any, start: int, slab: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """HDF5's spaces of `slab` in memory, and of its rows from `start` on in the file."""
    if not slab.ndim:
        return h5s.ALL, h5s.ALL
    there = dataset.get_space()
    there.select_hyperslab((start, *(0,) * (slab.ndim - 1)), slab.shape)
    return h5s.create_simple(slab.shape), there


@contextmanager
def open_file(fd: int, stored: Callable[[Node], bool] | None = None) -> Iterator[dict[str, Any]]:
    """The state in the checkpoint behind `fd`; CheckpointError or any Exception for a bad one.

    Arrays that `stored` says yes to are left in the file, as `StoredArray`.
    """
    state: dict[str, Any] = {}
    with open_checked(fd) as nodes:
        for node in nodes:
            *parents, name = node.path
            place = state
            for parent in parents:
                place = place[parent]
            if node.dataset is None:
                place[name] = {}
            else:
                place[name] = StoredArray(node) if stored and stored(node) else read(node)
        yield state


@contextmanager
def open_checked(fd: int) -> Iterator[Iterator[Node]]:
    """The objects of the checkpoint behind `fd`, parents first, each checked before it is given."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise CheckpointError("is not a regular file; give the path of a checkpoint")
    size = form.check_seal(fd)
    with h5py.File(form.FileBelow(fd), "r") as file:
        if file.userblock_size != form.SEAL_BYTES:
            raise CheckpointError(f"has a user block of {file.userblock_size} bytes, not 512")
        _check_root(file.id)
        root = h5g.open(file.id, b"/")
        yield _Walk(size, h5o.get_info(root).addr).nodes(root)


def read(node: Node) -> Any:
    """The array, scalar or string of a checked dataset."""
    if node.dtype is None:
        return _read_text(node)
    found = np.empty(node.shape, node.dtype)
    if found.size:
        node.dataset.read(h5s.ALL, h5s.ALL, found)
    if node.dtype == np.bool_ and found.size and found.view(np.uint8).max() > 1:
        raise CheckpointError(f"{_show(node.path)} holds values that are neither true nor false")
    return found if node.shape or node.marked else found[()]


def _read_text(node: Node) -> str:
    kind = node.dataset.get_type()
    found = np.empty((), f"S{kind.get_size()}")
    node.dataset.read(h5s.ALL, h5s.ALL, found, kind)
    data = found.tobytes()
    if data[-1:] != b"\0":
        raise CheckpointError(f"{_show(node.path)} is a string without an end")
    return data[:-1].decode()


class _Walk:
    """One walk over the objects of a file of `size` bytes, and what it has counted so far."""

    def __init__(self, size: int, root: Any) -> None:
        self.size = size
        self.claimed = 0
        self.stored = 0
        self.seen = {root}
        self.offsets: set[int] = set()

    def nodes(self, group: Any, path: tuple[str, ...] = ()) -> Iterator[Node]:
        if len(path) >= form.MAX_DEPTH:
            raise CheckpointError(f"{_show(path)} is nested deeper than {form.MAX_DEPTH} levels")
        names = set()
        for raw in group:
            name = _name(raw, path)
            if name in names:
                raise CheckpointError(f"{_show((*path, name))} is there twice")
            names.add(name)
            node, child = self.check(group, raw, (*path, name))
            yield node
            if child is not None:
                yield from self.nodes(child, node.path)

    def check(self, group: Any, raw: bytes, path: tuple[str, ...]) -> tuple[Node, Any]:
        """The object called `raw` in `group`, and the same as a group if it is one."""
        if group.links.get_info(raw).type != h5l.TYPE_HARD:
            raise CheckpointError(f"{_show(path)} is a soft or external link; none is followed")
        info = h5o.get_info(group, raw)
        if info.rc != 1 or info.addr in self.seen:
            raise CheckpointError(f"{_show(path)} is linked more than once; one link is allowed")
        self.seen.add(info.addr)
        if len(self.seen) > form.MAX_OBJECTS:
            raise CheckpointError(f"holds more than {form.MAX_OBJECTS} objects")
        if info.type not in (h5o.TYPE_GROUP, h5o.TYPE_DATASET):
            raise CheckpointError(f"{_show(path)} is neither a group nor a dataset")
        opened = h5o.open(group, raw)
        attributes = h5a.get_num_attrs(opened)
        if info.type == h5o.TYPE_GROUP:
            if attributes:
                raise CheckpointError(f"{_show(path)} has attributes; a group has none")
            return Node(path), opened
        marked = attributes == 1 and bool(h5a.exists(opened, MARK))
        if attributes and not marked:
            raise CheckpointError(f"{_show(path)} has attributes other than {MARK.decode()!r}")
        dtype, shape, nbytes = self.check_dataset(opened, path)
        self.claimed += nbytes
        if self.claimed > max(form.FREE_BYTES, form.MAX_RATIO * self.size):
            raise CheckpointError(
                f"{_show(path)}: the file claims to hold {self.claimed} bytes and more, "
                f"but has only {self.size}; at most {form.MAX_RATIO} times as much is allowed"
            )
        if self.stored > self.size:
            raise CheckpointError(f"{_show(path)} shares its storage with other datasets")
        return Node(path, opened, dtype, shape, marked), None

    def check_dataset(
        self, dataset: Any, path: tuple[str, ...]
    ) -> tuple[np.dtype[Any] | None, tuple[int, ...], int]:
        """Type, shape and bytes of a dataset. Its layout is checked first: HDF5 opens the files
        behind an external or virtual one as soon as it is asked for more."""
        created = dataset.get_create_plist()
        layout = created.get_layout()
        if layout not in _LAYOUTS or created.get_external_count():
            raise CheckpointError(f"{_show(path)} keeps its data in other files; none is followed")
        dtype, itemsize = _dtype(dataset.get_type(), path)
        space = dataset.get_space()
        if space.get_simple_extent_type() not in (h5s.SCALAR, h5s.SIMPLE):
            raise CheckpointError(f"{_show(path)} has no shape")
        shape = tuple(space.get_simple_extent_dims())
        if space.get_simple_extent_dims(maxdims=True) != shape or (dtype is None and shape):
            raise CheckpointError(f"{_show(path)} is resizable, or an array of strings")
        nbytes = math.prod(shape) * itemsize
        if layout == h5d.CHUNKED:
            self.stored += self.check_chunks(dataset, created, shape, itemsize, path)
            return dtype, shape, nbytes
        stored = dataset.get_storage_size()
        if created.get_nfilters() or stored != nbytes or (layout == h5d.CONTIGUOUS and shape):
            raise CheckpointError(
                f"{_show(path)} is {_LAYOUTS[layout]} with shape {shape}, {stored} bytes of "
                f"storage for {nbytes} and {created.get_nfilters()} filters; this is never written"
            )
        self.stored += stored
        return dtype, shape, nbytes

    def check_chunks(
        self, dataset: Any, created: Any, shape: tuple[int, ...], itemsize: int, path: Any
    ) -> int:
        """The bytes that all chunks take, if each is there once and none can grow too large."""
        filters = [created.get_filter(i) for i in range(created.get_nfilters())]
        codes = [each[0] for each in filters]
        if codes not in ([h5z.FILTER_FLETCHER32], [h5z.FILTER_LZF, h5z.FILTER_FLETCHER32]):
            raise CheckpointError(
                f"{_show(path)} has the filters {codes}; allowed are fletcher32 and lzf with it"
            )
        chunk = created.get_chunk()
        full = math.prod(chunk) * itemsize
        packed = len(codes) == 2
        # lzf allocates what its third value says before it unpacks a chunk
        if not 0 < full <= form.MAX_CHUNK_BYTES or (packed and filters[0][2][2:3] != (full,)):
            raise CheckpointError(f"{_show(path)} has chunks of {full} bytes, allowed is 1 MiB")
        count = math.prod(-(-length // side) for length, side in zip(shape, chunk))
        checksum = 4
        # first what is claimed: HDF5 counts chunks by looking for each
        if count * checksum > self.size or dataset.get_num_chunks() != count:
            raise CheckpointError(f"{_show(path)} claims {count} chunks and stores fewer or more")
        total = 0
        wrong: list[Any] = []
        places = set()
        elsewhere = len(self.offsets)

        def look(info: Any) -> None:
            nonlocal total
            total += info.size
            places.add(info.chunk_offset)
            self.offsets.add(info.byte_offset)
            least = full + checksum
            if packed and info.filter_mask == 0:
                least = full // form.MAX_RATIO + checksum
            if not (info.filter_mask == 0 or (packed and info.filter_mask == 1)) or not (
                least <= info.size <= full + checksum
            ):
                wrong.append(info)

        dataset.chunk_iter(look)
        if wrong:
            raise CheckpointError(
                f"{_show(path)}: chunk {wrong[0].chunk_offset} takes {wrong[0].size} bytes for "
                f"{full} with filter mask {wrong[0].filter_mask}; this is never written"
            )
        if len(places) != count:
            raise CheckpointError(f"{_show(path)} stores a chunk twice and lacks another")
        if len(self.offsets) - elsewhere != count:
            raise CheckpointError(f"{_show(path)} has chunks that share their storage")
        return total


def _dtype(kind: Any, path: tuple[str, ...]) -> tuple[np.dtype[Any] | None, int]:
    """NumPy's type (None for a string) and the size of an item."""
    if not kind.committed():
        for dtype, known in form.TYPES:
            if kind.equal(known):
                return dtype, dtype.itemsize
        if kind.get_class() == h5t.STRING and not kind.is_variable_str():
            size = kind.get_size()
            usual = kind.get_cset() == h5t.CSET_UTF8 and kind.get_strpad() == h5t.STR_NULLTERM
            if usual and size <= form.MAX_TEXT_BYTES:
                return None, size
    raise CheckpointError(
        f"{_show(path)} has an HDF5 type of class {kind.get_class()} and {kind.get_size()} bytes; "
        "allowed are bool, int, uint and float of 1 to 8 bytes, and UTF-8 strings of fixed size"
    )


def _check_root(file: Any) -> None:
    """Format name and version once more, for readers that know only HDF5."""
    root = h5g.open(file, b"/")
    names = sorted(h5a.open(root, index=i).name for i in range(h5a.get_num_attrs(root)))
    if names != [b"format", b"version"]:
        raise CheckpointError(f"has the attributes {names[:5]}; there are 'format' and 'version'")
    for name, dtype, right in (
        (b"format", np.dtype(f"S{len(form.FORMAT)}"), form.FORMAT.encode()),
        (b"version", np.dtype("<i8"), form.VERSION),
    ):
        attribute = h5a.open(root, name)
        if attribute.shape == () and attribute.get_type().equal(h5t.py_create(dtype)):
            found = np.empty((), dtype)
            attribute.read(found)
            if found[()] == right:
                continue
        raise CheckpointError(f"has another attribute {name.decode()!r} than {right!r}")


def _name(raw: bytes, path: tuple[str, ...]) -> str:
    try:
        return form.check_name(raw.decode())
    except ValueError as error:
        raise CheckpointError(f"{_show(path)} holds a bad name: {error}") from None


def _show(path: tuple[str, ...]) -> str:
    text = "/" + "/".join(path)
    return ascii(text if len(text) <= 120 else text[:117] + "...")
