"""A run's rows as TensorBoard's events, for those who like to look at them there."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class EventFile:
    """One file of events. Everything is on disk when a method returns, or it has raised OSError.

    tensorboardX's SummaryWriter has a thread that writes, and whoever adds to it waits for that
    thread: for ever, once it has died of a full disk.

    Args:
        folder: of all event files of a run; made if need be.
        purge_step: TensorBoard hides what older files have at this step and beyond.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # File names hold whole seconds only: a number keeps a quick restart in its own file.
        number = len(list(folder.glob("events.*")))
        self._writer = EventsWriter(str(folder / "events"), f".{number:04d}")
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the finite ones of some values, by name."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in finite.items()]
        self._write(Event(step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
        self._writer.flush()
