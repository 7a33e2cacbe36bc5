"""Parts of a checkpoint: what each learner writes by itself, beside the file that names them.

    checkpoints/frames-000001234567.h5                     names its parts and their checksums
    checkpoints/frames-000001234567.parts/learner-0-88.h5  a replay, for instance, at version 88

Parts are written first, all learners at once, then the file that names them. So a file whose parts
are missing or others than it names was not completed, or was tampered with: it does not count.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drl_mpi.run import checkpoint_format as form
from drl_mpi.run.checkpoint_format import CheckpointError

PARTS = "parts"
"""Group of a checkpoint: name of a part -> SHA-256 of its content, in hexadecimal."""
_FOLDER = re.compile(r"frames-\d{12}\.parts")


def parts_folder(checkpoint: Path) -> Path:
    """Where the parts of a checkpoint are."""
    return checkpoint.with_suffix(".parts")


def part_path(checkpoint: Path, name: str) -> Path:
    """The file of a part."""
    return parts_folder(checkpoint) / f"{name}.h5"


def checksum(path: Path) -> str:
    """The SHA-256 that a part's seal claims, in hexadecimal."""
    with path.open("rb") as file:
        return form.claimed_checksum(file.read(form.SEAL_BYTES))


def check_parts(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless every part that ``state`` names is there and whole."""
    named = state.get(PARTS, {})
    if not isinstance(named, Mapping):
        raise CheckpointError(f"checkpoint {checkpoint}: /{PARTS} is not a group; use another")
    for name, expected in named.items():
        path = part_path(checkpoint, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {checkpoint} lacks its part {path}: {error.strerror}; use another"
            ) from error
        try:
            form.check_seal(fd)
            found = form.claimed_checksum(os.pread(fd, form.SEAL_BYTES, 0))
        except CheckpointError as error:
            raise CheckpointError(f"part {path} {error}") from None
        except OSError as error:
            raise CheckpointError(f"part {path} cannot be read: {error.strerror}") from error
        finally:
            os.close(fd)
        if found != str(expected):
            raise CheckpointError(
                f"part {path} is not the one that checkpoint {checkpoint} names: it was written at "
                "another time; use another checkpoint"
            )


def remove_unnamed(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Removes parts of an earlier save at the same count, which the file now names no more."""
    found = state.get(PARTS, {})
    named = {part_path(checkpoint, name) for name in found} if isinstance(found, Mapping) else ()
    for path in parts_folder(checkpoint).glob("*.h5"):
        if path not in named:
            path.unlink(missing_ok=True)


def remove_orphans(folder: Path) -> None:
    """Removes parts whose checkpoint was never written, or is gone."""
    for found in folder.iterdir():
        if _FOLDER.fullmatch(found.name) and not found.with_suffix(".h5").exists():
            shutil.rmtree(found, ignore_errors=True)
