"""What learners that update independently tell the first one: rows of numbers, in a stream."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from drl_mpi.comm.poller import Poller
from drl_mpi.comm.record import Field, Record
from drl_mpi.comm.stream import StreamReceiver, StreamSender
from drl_mpi.updating.protocol import Info

REPORTS = 64
"""Rows of numbers per report."""
SEND_EVERY_S = 0.5
"""Seconds for which rows are gathered."""


def report_record(width: int) -> Record:
    """Layout of what learners report to the first: rows that came since the last report."""
    return Record([Field("count", "int64"), Field("rows", "float32", (REPORTS, width))])


class Reports(Protocol):
    """How rows of numbers reach the first learner."""

    def pass_on(self, row: Info) -> npt.NDArray[np.float32]:
        """Takes this learner's row; returns those to log here: float32 ``[rows, width]``."""
        ...

    def settled(self) -> bool | None:
        """Drives what is still under way; ``True`` once it is there. When all learners have met."""
        ...

    def rest(self) -> npt.NDArray[np.float32]:
        """What came since ``pass_on``: float32 ``[rows, width]``. When settled."""
        ...

    def end(self) -> bool | None:
        """Drives the end of the reports; ``True`` once nothing more will come."""
        ...

    def close(self) -> None:
        """Gives back what MPI holds."""
        ...


class ReportsSent:
    """The end of a learner that is not the first. Never waits for it.

    Args:
        sender: to the first learner.
        at_once: send every row as it comes (lock-step). Else rows are gathered for a moment, since
            the first learner has a message of every other one to take.
    """

    def __init__(
        self,
        sender: StreamSender,
        at_once: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sender = sender
        self._every_s = 0.0 if at_once else SEND_EVERY_S
        self._clock = clock
        self._sent_at = clock()
        self._waiting: deque[Info | None] = deque()
        """Rows; ``None`` marks the end of those that the first learner waits for."""
        self._settling = False

    def pass_on(self, row: Info) -> npt.NDArray[np.float32]:
        """See ``Reports``."""
        self._waiting.append(row.copy())
        now = self._clock()
        if len(self._waiting) >= REPORTS or now - self._sent_at >= self._every_s:
            self._sent_at = now
            self._send()
        return row[np.newaxis]

    def settled(self) -> bool | None:
        """See ``Reports``."""
        if not self._settling:
            self._waiting.append(None)
        self._send()
        self._settling = bool(self._waiting)
        return None if self._settling else True

    def rest(self) -> npt.NDArray[np.float32]:
        """See ``Reports``."""
        return np.zeros((0, 0), dtype=np.float32)

    def end(self) -> bool | None:
        """See ``Reports``."""
        self._send()
        return None if self._waiting else self._sender.end()

    def close(self) -> None:
        """See ``Reports``."""
        self._sender.close()

    def _send(self) -> None:
        while self._waiting and (slots := self._sender.free()):
            count = 0  # of a mark
            while count < REPORTS and self._waiting and (row := self._waiting[0]) is not None:
                slots[0]["rows"][count] = row
                self._waiting.popleft()
                count += 1
            if not count:
                self._waiting.popleft()
            slots[0]["count"][...] = count
            self._sender.send()


class ReportsReceived:
    """The first learner's end.

    Args:
        receiver: of the other learners' reports.
        poller: waits, in lock-step.
        in_turn: with every row of this learner, hand out the row that each other learner made in
            the round before (lock-step), instead of what is there.
    """

    def __init__(self, receiver: StreamReceiver, poller: Poller, in_turn: bool) -> None:
        self._receiver = receiver
        self._poller = poller
        self._in_turn = in_turn
        self._owed = False
        self._rows: dict[int, deque[Info]] = {source: deque() for source in receiver.sources}
        self._marks: set[int] = set()

    def pass_on(self, row: Info) -> npt.NDArray[np.float32]:
        """See ``Reports``."""
        rows = [row, *self._hand_out()]
        self._owed = True
        return np.stack(rows)

    def settled(self) -> bool | None:
        """See ``Reports``."""
        self._take()
        if len(self._marks) < len(self._rows):
            return None
        self._marks.clear()
        return True

    def rest(self) -> npt.NDArray[np.float32]:
        """See ``Reports``."""
        rows = self._all_rows()
        self._owed = False
        return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)

    def end(self) -> bool | None:
        """See ``Reports``."""
        self._take()
        return True if self._receiver.ended else None

    def close(self) -> None:
        """See ``Reports``."""
        self._receiver.close()

    def _hand_out(self) -> list[Info]:
        if not self._in_turn:
            self._take()
            return self._all_rows()
        if not self._owed:
            return []
        self._poller.wait(self._complete, "the other learners' reports")
        return [queue.popleft() for queue in self._rows.values()]

    def _all_rows(self) -> list[Info]:
        rows = [row for queue in self._rows.values() for row in queue]
        for queue in self._rows.values():
            queue.clear()
        return rows

    def _complete(self) -> bool | None:
        self._take()
        return True if all(self._rows.values()) else None

    def _take(self) -> None:
        while (delivery := self._receiver.take()) is not None:
            count = int(delivery.slot["count"])
            if not count:
                self._marks.add(delivery.source)
            for row in delivery.slot["rows"][:count]:
                self._rows[delivery.source].append(row.copy())
            self._receiver.release(delivery)
