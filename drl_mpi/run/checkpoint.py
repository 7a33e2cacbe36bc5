"""Checkpoints: a nested dict of arrays, numbers and strings as one verified HDF5 file.

    save(path, state)       all or nothing: the file appears whole and read back, or not at all
    load(path) -> state     the same values, bit for bit; CheckpointError for anything else
    opened(path, group)     the same, but large arrays of a group are read piece by piece
    Checkpoints(folder)     frames-000001234567.h5 in a folder: the newest few, resume, fall back

Equal states give equal files, byte for byte: there are no times in them, and names are sorted.
docs/checkpoint.md shows the layout and how to read it with h5py alone.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from drl_mpi.run import checkpoint_parts as parts
from drl_mpi.run import checkpoint_read as reading
from drl_mpi.run import checkpoint_write as writing
from drl_mpi.run.checkpoint_format import CheckpointError
from drl_mpi.run.checkpoint_write import ArraySource, State

__all__ = [
    "ArraySource",
    "CheckpointError",
    "Checkpoints",
    "State",
    "check_arrays",
    "load",
    "opened",
    "save",
]

PathLike: TypeAlias = str | os.PathLike[str]

STORED_BYTES = 16 * 1024 * 1024
"""Arrays from this size on are left in the file by `opened`, where they may be."""


def save(path: PathLike, state: State, *, compress: bool = True) -> None:
    """Write `state` to `path`, replacing what is there, or leave everything as it was.

    The file is written under a temporary name in the same folder, closed, reopened, checked as
    `load` checks it and compared with what was written, synchronised to the disk, and only then
    renamed. Temporary files that killed writers left in the folder are removed.

    `compress`: LZF for uint8 arrays (frames) from 1 MiB.

    Raises ValueError (a name or a value that cannot be stored), TypeError (a type that cannot),
    CheckpointError (the file cannot be written, or did not read back equal).
    """
    path = Path(path)
    items = writing.flatten(state)
    _remove_stale(path.parent)
    temporary = path.parent / _temporary_name()
    try:
        writing.write_verified(temporary, items, compress)
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError, CheckpointError) as error:
        megabytes = sum(item.size for item in items) // 10**6 + 1
        raise CheckpointError(
            f"checkpoint {path} not saved: {_one_line(error)}; it needs a writable folder with "
            f"about {megabytes} MB free (an earlier checkpoint there is untouched)"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def load(path: PathLike) -> dict[str, Any]:
    """The state that was saved to `path`.

    Arrays come back as np.ndarray, bool / int / float as NumPy scalars (np.bool_, np.int64 or
    np.uint64, np.float64), mappings as dicts with sorted names.

    Raises CheckpointError, and nothing else, for a file that is missing, truncated, damaged or
    made to do harm. Nothing outside the file is touched, and nothing in it is executed.
    """
    with opened(path) as state:
        return state


@contextlib.contextmanager
def opened(path: PathLike, group: str = "") -> Iterator[dict[str, Any]]:
    """The state that was saved to `path`, as `load` gives it, while the file is open.

    In the top level's `group`, arrays of numbers from 16 MiB on stay in the file: they are
    `StoredArray`s, with shape, dtype, length, and slices that are read as they are asked for. So a
    replay of many GB can be restored without a second copy of its frames in memory.

    Raises CheckpointError as `load` does. A slice raises OSError if it cannot be read, and
    RuntimeError once the file is closed.
    """
    stack = contextlib.ExitStack()
    try:
        with _explained(Path(path)):
            # first the kind: to open a pipe or a device may block or do something
            if not stat.S_ISREG(Path(path).stat().st_mode):
                raise CheckpointError("is not a regular file; give the path of a checkpoint")
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            state = stack.enter_context(
                reading.open_file(fd, lambda node: node.path[0] == group and _is_large(node))
            )
        yield state
    finally:
        with _explained(Path(path)):
            stack.close()


def _is_large(node: reading.Node) -> bool:
    if node.dtype is None or node.dtype == np.bool_ or not node.shape or len(node.path) == 1:
        return False
    return math.prod(node.shape) * node.dtype.itemsize >= STORED_BYTES


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} does not exist; check the path") from None
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path} {error}") from None
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {_one_line(error)}; use another"
        ) from error


class Checkpoints:
    """The checkpoints of one run: `folder`/frames-000001234567.h5, of which the newest `keep` stay.

    At least two: the newest may turn out damaged. One process saves, any may load.
    """

    _NAME = re.compile(r"frames-(\d{12})\.h5")

    def __init__(self, folder: PathLike, keep: int = 2) -> None:
        if keep < 2:
            raise ValueError(f"keep={keep}: at least 2, so that resume can fall back; set keep=2")
        self.folder = Path(folder)
        self.keep = keep
        self.skipped: list[tuple[Path, str]] = []
        """What `load_latest` found bad, and why; the next `save` renames these to *.h5.bad."""

    def path(self, frames: int) -> Path:
        """The file of a checkpoint as of `frames`."""
        return self.folder / f"frames-{frames:012d}.h5"

    def save_part(self, frames: int, name: str, state: State) -> str:
        """Save a part of the checkpoint that `save` will complete; returns its checksum.

        Several processes may save parts of different names at once.
        """
        path = parts.part_path(self.path(frames), name)
        _make(path.parent)
        save(path, state)
        return parts.checksum(path)

    def save(self, frames: int, state: State, *, compress: bool = True) -> Path:
        """Save `state` as of `frames` environment frames, then remove the oldest beyond `keep`."""
        if not 0 <= frames < 10**12:
            raise ValueError(f"frames={frames}: 0 to 999999999999 fit into the file's name")
        path = self.path(frames)
        _make(self.folder)
        save(path, state, compress=compress)
        self._set_aside(path)
        others = [each for each in self._paths() if each != path]
        for old in others[self.keep - 1 :]:
            old.unlink(missing_ok=True)
        parts.remove_orphans(self.folder)
        parts.remove_unnamed(path, state)
        return path

    def latest(self) -> Path | None:
        """The newest by its name, good or bad."""
        return next(iter(self._paths()), None)

    def load_latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest good checkpoint with all its parts; None if there is none at all.

        `self.skipped` tells which newer ones were bad. If all are, CheckpointError says why.
        """
        self.skipped = []
        for path in self._paths():
            try:
                state = load(path)
                parts.check_parts(path, state)
                return path, state
            except CheckpointError as error:
                self.skipped.append((path, str(error)))
        if not self.skipped:
            return None
        raise CheckpointError(
            f"none of the {len(self.skipped)} checkpoints in {self.folder} is good: "
            + "; ".join(reason for _, reason in self.skipped)
            + "; restore one from a backup, or start anew in another folder"
        )

    def _paths(self) -> list[Path]:
        """Newest first. The names have equal lengths, so they sort like their numbers."""
        if not self.folder.is_dir():
            return []
        found = (each for each in self.folder.iterdir() if self._NAME.fullmatch(each.name))
        return sorted(found, reverse=True)

    def _set_aside(self, saved: Path) -> None:
        """Bad ones must not count among the `keep`, nor be tried again at the next resume."""
        for path, _ in self.skipped:
            if path != saved and path.exists():
                path.rename(path.with_name(path.name + ".bad"))
        self.skipped = []


def check_arrays(
    found: Mapping[str, Any],
    expected: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    *,
    what: str,
) -> None:
    """Raise CheckpointError unless `found` holds exactly the `expected` arrays: name -> (shape,
    dtype). `what` says whose they are, such as "model" or "optimizer/square_avg"."""
    remedy = "the checkpoint belongs to another network or job; use the settings it was made with"
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    for problem, names in (("lacks", missing), ("has the unexpected", unexpected)):
        if names:
            raise CheckpointError(
                f"{what} {problem} {_some(names)}; allowed are {_some(sorted(expected))}: {remedy}"
            )
    for name, (shape, dtype) in expected.items():
        array = found[name]
        if not isinstance(array, np.ndarray | np.generic):
            got = f"a {type(array).__name__}"
        elif (array.shape, array.dtype) != (tuple(shape), dtype):
            got = f"{array.dtype} {array.shape}"
        else:
            continue
        raise CheckpointError(
            f"{what} {name!r} is {got}, allowed is {np.dtype(dtype)} {tuple(shape)}: {remedy}"
        )


# Temporary files

_TEMPORARY = re.compile(r"\.drl_mpi-(?P<host>.{1,64})-(?P<pid>\d{1,10})-[0-9a-f]{8}\.tmp")
_ABANDONED_S = 3600.0
"""A writer on another host touches its file every few seconds; after an hour it is dead."""


def _temporary_name() -> str:
    """Matches neither *.h5 nor the names that resume looks for, and tells who writes it."""
    return f".drl_mpi-{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())[:64] or "host"


def _remove_stale(folder: Path) -> None:
    """Remove what killed writers left, and nothing that a live one may still be writing."""
    try:
        found = [each for each in folder.iterdir() if each.name.startswith(".drl_mpi-")]
    except OSError:
        return  # the save itself will say it better
    for path in found:
        match = _TEMPORARY.fullmatch(path.name)
        try:
            if match and (
                (match["host"] == _host() and not _alive(int(match["pid"])))
                or time.time() - path.lstat().st_mtime > _ABANDONED_S
            ):
                path.unlink()
        except OSError:
            continue  # somebody else removed it, or may


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """The new name itself must reach the disk; some network file systems cannot be asked to."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"folder {folder} cannot be made: {_one_line(error)}; use a writable one"
        ) from error


# Words


def _one_line(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:300] or type(error).__name__


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name[:80]) for name in names[:3]) + more
