"""The run folder: where one run keeps everything, and the files that steer and end it.

runs/NAME/
  config.json    what the run is
  layout.txt     which rank did what
  progress.csv   one row per report (drl_mpi/run/metrics.py)
  tb/            the same rows as TensorBoard events
  checkpoints/   *.h5
  logs/          rank-N.log
  STOP           touch it: the run saves, then exits with code 75
  STOP.signal    the same, made because a signal came (Ctrl-C, a scheduler's warning)
  DONE           written last and only on success: never trust a launcher's exit code alone
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from drl_mpi.errors import UsageError

_LOCKED: dict[Path, TextIO] = {}
"""Folders that this process has. A lock lasts as long as its file is open, so somebody keeps it."""


class RunFolder:
    """The files of one run. Creates nothing until `prepare`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.layout = self.path / "layout.txt"
        self.progress = self.path / "progress.csv"
        self.tensorboard = self.path / "tb"
        self.checkpoints = self.path / "checkpoints"
        self.logs = self.path / "logs"
        self.stop = self.path / "STOP"
        self.stop_signal = self.path / "STOP.signal"
        self.done = self.path / "DONE"

    def log(self, rank: int) -> Path:
        """The log file of one rank."""
        return self.logs / f"rank-{rank}.log"

    def prepare(self) -> None:
        """Makes the folders and proves that files can be written.

        Raises UsageError, naming the folder and the cause. Calling it again changes nothing.
        """
        for folder in (self.path, self.tensorboard, self.checkpoints, self.logs):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                # A real file: permission bits say nothing about full or read-only file systems.
                with tempfile.TemporaryFile(dir=folder) as probe:
                    probe.write(b"x")
                    probe.flush()
            except OSError as error:
                raise UsageError(
                    f"run folder {str(self.path)!r} cannot be used: {folder}: "
                    f"{error.strerror or error}; it must be a folder that you may write to: "
                    "choose another one or free this one"
                ) from error

    def unusable(self, error: OSError) -> str:
        """What to say when something in this folder fails with ``error``."""
        return (
            f"run folder {str(self.path)!r} cannot be used: {error}; free what is in the way, or "
            "choose another --run-dir"
        )

    def lock(self) -> None:
        """Keeps this folder for this process until it ends.

        Raises UsageError if another process has it. File systems without locks keep nobody out.
        """
        where = self.path.resolve()
        if where in _LOCKED:
            return
        _LOCKED[where] = (self.path / ".lock").open("a")
        try:
            fcntl.flock(_LOCKED[where], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.unlock()
            raise UsageError(
                f"run folder {str(self.path)!r} is in use by a job that is still running; wait for "
                "it, stop it by touching STOP in there, or choose another one"
            ) from error
        except OSError:
            return

    def unlock(self) -> None:
        """Gives up what `lock` took."""
        _LOCKED.pop(self.path.resolve()).close()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.json atomically. Paths become strings and tuples lists."""
        text = json.dumps(dict(config), indent=2, default=str) + "\n"
        write_atomically(self.config, text.encode())

    def read_config(self) -> dict[str, Any]:
        """What `write_config` wrote. Raises UsageError for a missing or other file."""
        remedy = "give the folder of a run that was started by a job of drl_mpi"
        try:
            config = json.loads(self.config.read_bytes())
        except OSError as error:
            raise UsageError(
                f"cannot read {str(self.config)!r}: {error.strerror or error}; {remedy}"
            ) from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{str(self.config)!r} is not JSON: {error}; {remedy}") from error
        if not isinstance(config, dict):
            raise UsageError(
                f"{str(self.config)!r} holds a {type(config).__name__} where an object belongs; "
                f"{remedy}"
            )
        return config

    def write_layout(self, text: str) -> None:
        """Writes layout.txt atomically."""
        write_atomically(self.layout, text.rstrip("\n").encode() + b"\n")

    def stop_requested(self) -> bool:
        """Whether the run is to stop, by the user's wish or by a signal.

        Two stat calls: cheap enough for every update.
        """
        return _exists(self.stop) or _exists(self.stop_signal)

    def stopped_by_user(self) -> bool:
        """Whether somebody touched STOP."""
        return _exists(self.stop)

    def clear_stop(self) -> None:
        """Removes both, so that a resumed run goes on."""
        self.stop.unlink(missing_ok=True)
        self.stop_signal.unlink(missing_ok=True)

    def mark_done(self, summary: Mapping[str, Any]) -> None:
        """Writes DONE, atomically and safe against power loss. Call it last, only on success.

        `summary` is stored as JSON; numbers that JSON has no word for (NaN) become null.
        """
        text = json.dumps(_finite(dict(summary)), indent=2, default=str, allow_nan=False) + "\n"
        write_atomically(self.done, text.encode())

    def is_done(self) -> bool:
        """Whether the run ended with success."""
        return self.done.is_file()

    def clear_done(self) -> None:
        """Removes DONE: for a finished run that is to go on."""
        self.done.unlink(missing_ok=True)


def _exists(path: Path) -> bool:
    """A file system that does not answer counts as no: a hiccup must not end a run."""
    try:
        os.stat(path)
    except OSError:
        return False
    return True


def differences(now: Mapping[str, Any], stored: Mapping[str, Any], limit: int = 6) -> str:
    """Names the fields in which two configs differ, on one line; empty when they agree.

    Nested fields are named with dots. Values are compared as JSON stores them, so a tuple equals
    the list that was read back. At most `limit` fields are spelt out, the others are counted.
    """
    left, right = dict(_leaves(_stored_form(now))), dict(_leaves(_stored_form(stored)))
    names = [name for name in left | right if _text(left, name) != _text(right, name)]
    parts = [f"{n}: {_text(left, n)} now, {_text(right, n)} stored" for n in names[:limit]]
    if len(names) > limit:
        parts.append(f"and {len(names) - limit} more")
    return "; ".join(parts)


def write_atomically(path: Path, data: bytes) -> None:
    """Puts `data` at `path` so that a reader or a crash finds the old file or the new, never half.

    Raises OSError; then the old file is untouched and nothing is left behind.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # mkstemp makes files private
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    mask = os.umask(0o022)  # can only be read by setting it
    os.umask(mask)
    return mask


def _stored_form(value: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(dict(value), default=str))


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walks nested objects: (dotted name, value) for everything that is not itself an object."""
    if isinstance(value, dict) and (value or not prefix):
        for name, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, value


def _text(fields: Mapping[str, Any], name: str, width: int = 60) -> str:
    """A value as one short line that still tells 1 from "1"."""
    if name not in fields:
        return "absent"
    text = json.dumps(fields[name])
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
