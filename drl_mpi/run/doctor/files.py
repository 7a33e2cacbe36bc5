"""The run folder's file system: can runs and checkpoints live on it?"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from drl_mpi.run.doctor.facts import Folder
from drl_mpi.run.folder import write_atomically

SEEN_WITHIN_S = 3.0
"""Seconds for another host's file to appear: network file systems remember old answers."""


def look_at(path: Path, name: str, token: str, sleep: Callable[[float], None]) -> Folder:
    """Tries the folder from this host.

    Args:
        path: of the folder.
        name: of the file that rank 0 wrote there.
        token: what it holds.
        sleep: takes seconds.
    """
    path = path.absolute()
    kind = file_system(path)
    if not path.is_dir():
        return Folder(kind, error="is not a folder here", same=False)
    # This host's own file, in case all of them share the folder.
    probe = path / f".doctor-{os.uname().nodename}-{os.getpid()}"
    try:
        began = time.perf_counter()
        write_atomically(probe, b"probe")
        sync_ms = 1e3 * (time.perf_counter() - began)
        back = probe.read_bytes()
        if back != b"probe":
            return Folder(kind, error=f"gave back {back!r} for b'probe'")
        free = shutil.disk_usage(path).free
        lock_error = hdf5_lock_error(probe)
    except OSError as error:
        return Folder(kind, error=error.strerror or str(error))
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return Folder(kind, "", free, sync_ms, lock_error, _sees(path / name, token, sleep))


def _sees(path: Path, token: str, sleep: Callable[[float], None]) -> bool:
    deadline = time.monotonic() + SEEN_WITHIN_S
    while True:
        with contextlib.suppress(OSError):
            if path.read_text() == token:
                return True
        if time.monotonic() > deadline:
            return False
        sleep(0.1)


def hdf5_lock_error(path: Path) -> str:
    """Why HDF5 cannot lock a file at ``path``, which it writes; empty if it can."""
    try:
        import h5py
    except ImportError:
        return ""  # said elsewhere
    try:
        with h5py.File(path, "w", locking=True):
            return ""
    except OSError as error:
        return " ".join(str(error).split())


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Its kind, such as ``nfs4`` or ``lustre``; empty if the kernel does not tell."""
    real = Path(os.path.realpath(path))
    best, kind = -1, ""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        _, where, found, *_ = line.split()
        where = where.encode().decode("unicode_escape")  # a space is \040
        if real.is_relative_to(where) and len(where) >= best:
            best, kind = len(where), found
    return kind


def make(path: Path) -> list[Path]:
    """Makes the folder. Returns what was made, outermost first. Raises OSError."""
    path = path.absolute()
    missing = [each for each in (path, *path.parents) if not each.exists()][::-1]
    path.mkdir(parents=True, exist_ok=True)
    return missing


def remove(folders: list[Path]) -> None:
    """Removes folders that were made, if they are still empty."""
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()
