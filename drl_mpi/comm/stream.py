"""Streams: many ranks send fixed-size records to one.

The receiver keeps K persistent receives posted for every source. Senders use persistent
*synchronous* sends, which complete only when matched, so the posted receives are the flow control:
a slow receiver blocks its senders instead of flooding its memory. A message without bytes ends a
stream; it travels in order behind the data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from drl_mpi.comm.mpi import MPI
from drl_mpi.comm.record import Record, Slot


class StreamError(RuntimeError):
    """A message of the wrong size arrived: the two ends disagree about the record."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A received record, borrowed until it is given back with ``StreamReceiver.release``."""

    source: int
    """Rank that sent it."""
    slot: Slot
    index: int
    """Which of the receiver's requests it came by."""


class Receiver(Protocol):
    """Where records come from: a stream, or something that looks like one."""

    sources: tuple[int, ...]
    depth: int

    @property
    def ended(self) -> bool:
        """Whether nothing more will come and all was taken."""
        ...

    def take(self, source: int | None = None) -> Delivery | None:
        """The next record, or ``None`` if nothing is there; of one source if that is given."""
        ...

    def arrived(self, source: int) -> bool:
        """Whether something of this rank is here to be taken."""
        ...

    def release(self, delivery: Delivery) -> None:
        """Gives a record back; its views must not be used any more."""
        ...

    def gauges(self) -> dict[str, float]:
        """Numbers to log, since the last call."""
        ...

    def close(self) -> None:
        """Gives back what MPI holds."""
        ...


class StreamReceiver:
    """The receiving end.

    Args:
        comm: communicator of both ends.
        sources: ranks that send.
        record: layout of every message.
        depth: receives kept posted per source.
        tag: the stream's tag, not used for anything else on ``comm``.
    """

    def __init__(
        self, comm: MPI.Comm, sources: Sequence[int], record: Record, depth: int, tag: int
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth is {depth}; a stream needs at least 1 posted receive")
        self.sources = tuple(sources)
        self.bytes_received = 0
        self._record = record
        self.depth = depth
        self._slots = [Slot(record) for _ in range(len(self.sources) * depth)]
        self._requests: list[MPI.Prequest] = [
            comm.Recv_init([slot.buffer, MPI.BYTE], source=self.sources[i // depth], tag=tag)
            for i, slot in enumerate(self._slots)
        ]
        # Messages of one source match its receives in the order in which these were started, so
        # each source's started requests form a queue, and only its head can be the oldest record.
        self._started: list[deque[int]] = [deque() for _ in self.sources]
        self._arrived: list[int | None] = [None] * len(self._slots)
        """Bytes that came by each request; ``None`` while it is under way; 0 is the end."""
        self._position = {source: i for i, source in enumerate(self.sources)}
        self._turn = 0
        for index in range(len(self._slots)):
            self._start(index)

    def take(self, source: int | None = None) -> Delivery | None:
        """The oldest record of the next ready source in turn, or ``None`` if nothing is there.

        Args:
            source: only look at this rank (fixed order of consumption).
        """
        # Only when nothing is here is MPI asked: on a busy machine that may cost a millisecond.
        delivery = self._next(source)
        if delivery is None:
            self._test()
            delivery = self._next(source)
        return delivery

    def arrived(self, source: int) -> bool:
        """Whether something of this rank is here to be taken."""
        return self._head(self._position[source]) is not None

    def release(self, delivery: Delivery) -> None:
        """Gives a record's slot back to MPI; its views must not be used any more."""
        self._start(delivery.index)

    def gauges(self) -> dict[str, float]:
        """See ``Receiver.gauges``."""
        return {}

    @property
    def ended(self) -> bool:
        """Whether every source has closed its stream and all records were taken."""
        self._test()
        return all(self._head(position) == 0 for position in range(len(self.sources)))

    def close(self) -> None:
        """Withdraws the posted receives. Call it when all streams have ended."""
        for index, request in enumerate(self._requests):
            if self._slots[index].busy and self._arrived[index] is None:
                request.Cancel()
                request.Wait()
            request.Free()

    def _next(self, source: int | None) -> Delivery | None:
        if source is not None:
            return self._pop(self._position[source])
        for _ in self.sources:
            position = self._turn
            self._turn = (self._turn + 1) % len(self.sources)
            delivery = self._pop(position)
            if delivery is not None:
                return delivery
        return None

    def _start(self, index: int) -> None:
        self._slots[index].busy = True
        self._arrived[index] = None
        self._started[index // self.depth].append(index)
        self._requests[index].Start()

    def _test(self) -> None:
        statuses: list[MPI.Status] = []
        try:
            indices = MPI.Request.Testsome(self._requests, statuses)
        except MPI.Exception as error:
            raise StreamError(
                f"a message of more than a record's {self._record.nbytes} bytes arrived ({error}); "
                "both ends must be started with the same options"
            ) from error
        for index, status in zip(indices or (), statuses, strict=False):
            count = status.Get_count(MPI.BYTE)
            if count not in (0, self._record.nbytes):
                raise StreamError(
                    f"rank {status.source} sent {count} bytes where a record has "
                    f"{self._record.nbytes}; both ends must be started with the same options"
                )
            self._arrived[index] = count
            self.bytes_received += count

    def _head(self, position: int) -> int | None:
        """Bytes of a source's oldest message; 0 once it has ended; ``None`` if none is here."""
        started = self._started[position]
        return self._arrived[started[0]] if started else None

    def _pop(self, position: int) -> Delivery | None:
        if not self._head(position):
            return None
        index = self._started[position].popleft()
        self._slots[index].busy = False
        return Delivery(self.sources[position], self._slots[index], index)


class Sender(Protocol):
    """Where records go: one stream, or several."""

    def free(self, count: int = 1) -> list[Slot] | None:
        """The next ``count`` slots in order, or ``None`` while MPI still owns one."""
        ...

    def send(self) -> None:
        """Starts to send the next slot."""
        ...

    def progress(self) -> None:
        """Lets MPI move what is under way."""
        ...

    def end(self) -> bool | None:
        """Drives the end; ``True`` when everything was received, else ``None``."""
        ...

    def close(self) -> None:
        """Frees the requests. Call it when everything was received."""
        ...


class StreamSender:
    """The sending end: a ring of slots behind persistent synchronous sends.

    Args:
        comm: communicator of both ends.
        destination: rank that receives.
        record: layout of every message.
        depth: slots in the ring; two let one be filled while the other is under way.
        tag: the stream's tag.
    """

    def __init__(
        self, comm: MPI.Comm, destination: int, record: Record, depth: int, tag: int
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth is {depth}; a stream needs at least 1 slot to send from")
        self.bytes_sent = 0
        self._comm = comm
        self._destination = destination
        self._tag = tag
        self._record = record
        self._slots = [Slot(record) for _ in range(depth)]
        # mpi4py's stubs give this one call a wider type than its siblings.
        self._requests = [
            cast(MPI.Prequest, comm.Ssend_init([slot.buffer, MPI.BYTE], dest=destination, tag=tag))
            for slot in self._slots
        ]
        self._next = 0
        self._last: MPI.Request | None = None

    def free(self, count: int = 1) -> list[Slot] | None:
        """The next ``count`` slots of the ring in order, or ``None`` while MPI still owns one."""
        if count > len(self._slots):
            raise ValueError(f"asked for {count} slots; the ring has {len(self._slots)}")
        chosen = [(self._next + i) % len(self._slots) for i in range(count)]
        for index in chosen:
            if self._slots[index].busy:
                if not self._requests[index].Test():
                    return None
                self._slots[index].busy = False
        return [self._slots[index] for index in chosen]

    def send(self) -> None:
        """Starts to send the ring's next slot, which ``free`` handed out and was filled."""
        slot = self._slots[self._next]
        if slot.busy:
            raise RuntimeError("the next slot is still being sent; call free() before send()")
        slot.busy = True
        self._requests[self._next].Start()
        self._next = (self._next + 1) % len(self._slots)
        self.bytes_sent += self._record.nbytes

    def progress(self) -> None:
        """Lets MPI move what is under way, in both directions; microseconds."""
        self._comm.Iprobe(source=self._destination, tag=self._tag)

    def end(self) -> bool | None:
        """Drives the empty message that ends the stream.

        Call it until it returns ``True`` (the receiver has everything); before, it returns
        ``None``.
        """
        if self._last is None:
            if self.free(len(self._slots)) is None:
                return None
            self._last = self._comm.Issend([None, 0, MPI.BYTE], self._destination, self._tag)
        return True if self._last.Test() else None

    def close(self) -> None:
        """Frees the requests. Call it when everything was received."""
        for request in self._requests:
            request.Free()


class SpreadSender:
    """Records in turn to several receivers: of ``records`` per unroll each gets an equal block.

    Args:
        senders: one per receiver.
        records: that are sent between two calls of ``free``, a multiple of the senders.
    """

    def __init__(self, senders: Sequence[StreamSender], records: int) -> None:
        if records % len(senders):
            raise ValueError(f"{records} records do not spread evenly over {len(senders)} ranks")
        self._senders = tuple(senders)
        self._each = records // len(senders)
        self._sent = 0

    def free(self, count: int = 1) -> list[Slot] | None:
        """See ``Sender.free``; ``count`` is all the records of an unroll."""
        if count != self._each * len(self._senders):
            raise ValueError(f"asked for {count} slots of {self._each * len(self._senders)}")
        slots: list[Slot] = []
        for sender in self._senders:
            found = sender.free(self._each)
            if found is None:
                return None
            slots += found
        return slots

    def send(self) -> None:
        """See ``Sender.send``."""
        self._senders[self._sent // self._each % len(self._senders)].send()
        self._sent += 1

    def progress(self) -> None:
        """See ``Sender.progress``."""
        for sender in self._senders:
            sender.progress()

    def end(self) -> bool | None:
        """See ``Sender.end``."""
        ended = [sender.end() for sender in self._senders]  # drive every one
        return True if all(ended) else None

    def close(self) -> None:
        """See ``Sender.close``."""
        for sender in self._senders:
            sender.close()
