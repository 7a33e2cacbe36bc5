"""A run's rows as TensorBoard's events, for those who like to look at them there."""

from __future__ import annotations

import math
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c


class EventFile:
    """One file of events. What a method wrote is with the system when it returns.

    tensorboardX's SummaryWriter has a thread that writes, and whoever adds to it waits for that
    thread: for ever, once it has died of a full disk. It also waits for the disk.

    Args:
        folder: of all event files of a run; made if need be.
        purge_step: TensorBoard hides what older files have at this step and beyond.

    Raises:
        OSError: this, and every method, where it cannot write.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The time has whole seconds only: a number keeps a quick restart in a file of its own.
        number = len(list(folder.glob("events.*")))
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{number:04d}"
        self._file = (folder / name).open("wb", buffering=0)
        self._write(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the finite ones of some values, by name."""
        scalars = [
            Summary.Value(tag=name, simple_value=float(value))
            for name, value in values.items()
            if math.isfinite(value)
        ]
        self._write(Event(step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        """In TensorFlow's framing: size, its checksum, the event, its checksum."""
        event.wall_time = time.time()
        data = event.SerializeToString()
        size = struct.pack("<Q", len(data))
        checks = [struct.pack("<I", masked_crc32c(part)) for part in (size, data)]
        record = b"".join((size, checks[0], data, checks[1]))
        while record:  # what a full disk takes is a part; then it says why
            record = record[self._file.write(record) :]
