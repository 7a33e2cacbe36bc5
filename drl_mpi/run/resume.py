"""What a run goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drl_mpi.errors import UsageError
from drl_mpi.run.checkpoint import CheckpointError, Checkpoints, load
from drl_mpi.run.checkpoint_parts import check_parts
from drl_mpi.run.folder import RunFolder, differences


@dataclass(frozen=True)
class Found:
    """A good checkpoint."""

    path: Path
    state: dict[str, Any]
    own: bool
    """Whether it is the run folder's own."""
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    """Newer ones that are damaged, and why."""


def find(folder: RunFolder, wish: str, identity: Mapping[str, Any]) -> Found | None:
    """The checkpoint to go on from, or ``None`` to start anew. Changes nothing on disk.

    Args:
        folder: of the run.
        wish: "auto", "none", or the path of a checkpoint to start a new folder from; a folder that
            has checkpoints of its own goes on from these, so that a requeued job repeats nothing.
        identity: the fields that must be those of the stored run.

    Raises:
        UsageError: the folder or the checkpoint belongs to another configuration, no checkpoint
            is good, or a fresh start is wanted in a used folder.
    """
    if not wish:
        raise UsageError("--resume is empty; allowed: auto, none, or the path of a checkpoint")
    try:
        used = folder.config.exists()
        checkpoints = Checkpoints(folder.checkpoints)
        own = checkpoints.latest() is not None
    except OSError as error:
        raise UsageError(
            f"run folder {folder.path} cannot be read: {error.strerror}; choose another --run-dir"
        ) from error
    if wish == "none" and used:
        raise UsageError(
            f"--resume none, but {folder.path} holds a run already; choose another --run-dir, or "
            "remove that folder"
        )
    if used:
        stored = folder.read_config()
        _refuse_other(f"run folder {folder.path}", identity, stored, "choose another --run-dir")
    if wish not in ("auto", "none") and not own:
        return _named(Path(wish), identity)
    if not own:
        return None
    try:
        found = checkpoints.load_latest()
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    assert found is not None
    return Found(*found, own=True, skipped=checkpoints.skipped)


def _named(path: Path, identity: Mapping[str, Any]) -> Found:
    try:
        state = load(path)
        check_parts(path, state)
        config = json.loads(str(state["config"]))
        if not isinstance(config, dict):
            raise ValueError(f"it is a {type(config).__name__}")
    except CheckpointError as error:
        raise UsageError(f"--resume: {error}") from error
    except (KeyError, ValueError, RecursionError) as error:
        raise UsageError(f"--resume: {path} holds no config of a run: {error}") from error
    _refuse_other(f"checkpoint {path}", identity, config, "use the options that it was made with")
    return Found(path, state, own=False)


def _like(stored: Mapping[str, Any], pattern: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``stored`` that ``pattern`` has, nested ones too."""
    kept: dict[str, Any] = {}
    for name, value in pattern.items():
        found = stored.get(name)
        if isinstance(value, Mapping) and isinstance(found, Mapping):
            kept[name] = _like(found, value)
        else:
            kept[name] = found
    return kept


def _refuse_other(
    what: str, identity: Mapping[str, Any], stored: Mapping[str, Any], remedy: str
) -> None:
    other = differences(identity, _like(stored, identity))
    if other:
        raise UsageError(f"{what} belongs to another configuration ({other}); {remedy}")
