"""Publication of parameters: one flat vector, one version number.

The publisher owes a subscriber the newest version; it pays when the previous message to that
subscriber has completed. A version's buffer does not change while any send of it is under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from drl_mpi.comm.mpi import MPI
from drl_mpi.comm.record import Field, Record, Slot

STOP = 1
"""Flag of the last message: no more parameters will come, end your stream."""


def parameters_record(size: int) -> Record:
    """Layout of a parameters message: version, steps, flags and the float32 vector ``[size]``."""
    return Record(
        [
            Field("version", "int64"),
            Field("steps", "int64"),
            Field("flags", "int64"),
            Field("vector", "float32", (size,)),
        ]
    )


class Publisher(Protocol):
    """Where a learner's versions go: to subscribers, or to threads of its own."""

    @property
    def subscribed(self) -> bool:
        """Whether anybody wants them."""
        ...

    def publish(self, vector: npt.NDArray[np.float32], version: int, steps: int = 0) -> None:
        """Makes a copy of ``vector`` (float32 ``[size]``) the newest version."""
        ...

    def owe(self, subscriber: int) -> None:
        """Notes that a rank should get the newest version as soon as may be."""
        ...

    def owe_all(self) -> None:
        """Notes a debt to every subscriber."""
        ...

    def progress(self) -> object:
        """Drives what is under way; ``True`` if it is worth a look soon."""
        ...

    def stop(self) -> bool | None:
        """Drives the end; ``True`` when everybody knows, else ``None``."""
        ...


class ParameterPublisher:
    """The publishing end.

    Args:
        comm: communicator of both ends.
        subscribers: ranks that receive.
        size: length of the parameter vector.
        tag: not used for anything else on ``comm``.
    """

    def __init__(self, comm: MPI.Comm, subscribers: Sequence[int], size: int, tag: int) -> None:
        self.bytes_sent = 0
        self._comm = comm
        self._tag = tag
        self._record = parameters_record(size)
        self._owed: dict[int, bool] = dict.fromkeys(subscribers, False)
        self._sending: dict[int, tuple[MPI.Request, Slot]] = {}
        self._newest: Slot | None = None
        self._spare: list[Slot] = []
        self._last = Slot(Record(self._record.fields[:3]))
        self._last["version"][...] = -1
        self._last["flags"][...] = STOP
        self._told: set[int] = set()

    def publish(self, vector: npt.NDArray[np.float32], version: int, steps: int = 0) -> None:
        """Makes a copy of ``vector`` (float32 ``[size]``) the newest version, and pays debts.

        Args:
            vector: the parameters.
            version: their number.
            steps: agent decisions behind them, for schedules.
        """
        if not self._owed:
            return
        self._collect()
        if self._newest is not None and not self._in_flight(self._newest):
            self._spare.append(self._newest)
        slot = self._spare.pop() if self._spare else Slot(self._record)
        slot.busy = False
        slot["vector"][:] = vector
        slot["version"][...] = version
        slot["steps"][...] = steps
        slot["flags"][...] = 0
        self._newest = slot
        self.progress()

    @property
    def subscribed(self) -> bool:
        """Whether anybody subscribes."""
        return bool(self._owed)

    def owe(self, subscriber: int) -> None:
        """Notes that a subscriber should get the newest version as soon as may be.

        Nothing is owed to ranks that do not subscribe.
        """
        if subscriber in self._owed:
            self._owed[subscriber] = True

    def owe_all(self) -> None:
        """Notes a debt to every subscriber."""
        for subscriber in self._owed:
            self._owed[subscriber] = True

    def progress(self) -> None:
        """Starts the sends that are owed to subscribers with no message under way."""
        self._collect()
        if self._newest is None or self._told:
            return
        for subscriber, owed in self._owed.items():
            if owed and subscriber not in self._sending:
                self._send(subscriber, self._newest)

    def stop(self) -> bool | None:
        """Drives the last message to every subscriber.

        Call it until it returns ``True`` (all have it); before that it returns ``None``.
        """
        self._collect()
        for subscriber in self._owed:
            if subscriber not in self._sending and subscriber not in self._told:
                self._told.add(subscriber)
                # Without the vector: a receiver looks at the flags first.
                self._send(subscriber, self._last)
        return True if len(self._told) == len(self._owed) and not self._sending else None

    def _send(self, subscriber: int, slot: Slot) -> None:
        request = self._comm.Issend([slot.buffer, MPI.BYTE], subscriber, self._tag)
        slot.busy = True
        self._sending[subscriber] = (request, slot)
        self._owed[subscriber] = False
        self.bytes_sent += slot.buffer.nbytes

    def _collect(self) -> None:
        for subscriber, (request, slot) in list(self._sending.items()):
            if request.Test():
                del self._sending[subscriber]
                slot.busy = self._in_flight(slot)
                if slot not in (self._newest, self._last) and not slot.busy:
                    self._spare.append(slot)

    def _in_flight(self, slot: Slot) -> bool:
        return any(sent is slot for _, sent in self._sending.values())


@dataclass(frozen=True, slots=True)
class Published:
    """A version as it was received; the vector is valid until the next call of ``newest``."""

    version: int
    vector: npt.NDArray[np.float32]
    steps: int = 0


class ParameterSubscriber:
    """The receiving end: two buffers, so that a version can arrive while another is in use.

    Args:
        comm: communicator of both ends.
        publisher: rank that publishes.
        size: length of the parameter vector.
        tag: as the publisher's.
    """

    def __init__(self, comm: MPI.Comm, publisher: int, size: int, tag: int) -> None:
        self.stopped = False
        """Whether the publisher's last message has arrived."""
        record = parameters_record(size)
        self._slots = [Slot(record) for _ in range(2)]
        self._requests: list[MPI.Prequest] = [
            comm.Recv_init([slot.buffer, MPI.BYTE], source=publisher, tag=tag)
            for slot in self._slots
        ]
        self._held: int | None = None
        self._head = 0
        for index in range(2):
            self._start(index)

    due = False
    """Nothing is asked for: versions come by themselves."""

    def begin(self) -> None:
        """Nothing to do before an unroll."""

    def newest(self) -> Published | None:
        """The newest version that has arrived since the last call, or ``None``."""
        published: Published | None = None
        while not self.stopped and self._slots[self._head].busy:
            if not self._requests[self._head].Test():
                break
            if self._held is not None:
                self._start(self._held)
            slot, self._held = self._slots[self._head], self._head
            slot.busy = False
            self._head = 1 - self._head
            if int(slot["flags"]) & STOP:
                self.stopped = True
                break
            published = Published(int(slot["version"]), slot["vector"], int(slot["steps"]))
        return published

    def progress(self) -> None:
        """Nobody waits for this rank."""

    def close(self) -> None:
        """Withdraws what is still posted."""
        for slot, request in zip(self._slots, self._requests, strict=True):
            if slot.busy:
                request.Cancel()
                request.Wait()
            request.Free()

    def _start(self, index: int) -> None:
        self._slots[index].busy = True
        self._requests[index].Start()
