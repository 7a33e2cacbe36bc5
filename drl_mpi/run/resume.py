"""What a run goes on from."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drl_mpi.errors import UsageError
from drl_mpi.run.checkpoint import CheckpointError, Checkpoints, load
from drl_mpi.run.folder import RunFolder, differences

Found = tuple[Path, dict[str, Any]]


def find(folder: RunFolder, wish: str, identity: Mapping[str, Any]) -> Found | None:
    """The checkpoint to go on from, or ``None`` to start anew.

    Args:
        folder: of the run.
        wish: "auto", "none", or a checkpoint's path.
        identity: the fields that must be those of the stored run.

    Raises:
        UsageError: the folder or the checkpoint belongs to another configuration, no checkpoint
            is good, or a fresh start is wanted in a used folder.
    """
    if wish not in ("auto", "none"):
        return _checked(Path(wish), identity)
    if not folder.config.exists():
        return None
    if wish == "none":
        raise UsageError(
            f"--resume none, but {folder.path} holds a run already; choose another --run-dir, or "
            "remove that folder"
        )
    stored = folder.read_config()
    _refuse_other(f"run folder {folder.path}", identity, stored, "choose another --run-dir")
    checkpoints = Checkpoints(folder.checkpoints)
    try:
        found = checkpoints.load_latest()
    except CheckpointError as error:
        raise UsageError(f"{error}; start anew with another --run-dir") from error
    for path, reason in checkpoints.skipped:
        print(f"passed over {path}: {reason}", file=sys.stderr)
    return found


def _checked(path: Path, identity: Mapping[str, Any]) -> Found:
    try:
        state = load(path)
        config = json.loads(str(state["config"]))
    except CheckpointError as error:
        raise UsageError(f"--resume: {error}") from error
    except (KeyError, ValueError) as error:
        raise UsageError(f"--resume: {path} holds no config of a run: {error}") from error
    _refuse_other(f"checkpoint {path}", identity, config, "use the options that it was made with")
    return path, state


def _refuse_other(
    what: str, identity: Mapping[str, Any], stored: Mapping[str, Any], remedy: str
) -> None:
    other = differences(identity, {name: stored[name] for name in identity if name in stored})
    if other:
        raise UsageError(f"{what} belongs to another configuration ({other}); {remedy}")
