"""Exchanges: many clients ask one server by fixed-size records, and each gets its own answers.

A client has a few channels. On each it asks, waits for the answer, asks again: so there is never
more than one message under way per channel and direction, every receive is posted before its
message is sent, and nothing can pile up. A channel has a tag and buffers of its own at both ends,
so an answer cannot reach anybody but who asked. All requests are persistent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drl_mpi.comm.mpi import MPI
from drl_mpi.comm.record import Field, Record, Slot

ROOM = 1 << 20
"""Bytes of room behind a request. Open MPI's ob1 cuts off a small message that is too long, but
writes a large one beyond its buffer (5.0.11, in shared memory and over TCP). Untouched, they cost
no memory."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that arrived, or what came instead of one."""

    client: int
    """Rank that asked."""
    channel: int
    fault: str = ""
    """Why this is no request, in words; empty for a good one."""


class ExchangeServer:
    """The end that answers.

    Args:
        comm: communicator of both ends.
        clients: ranks that ask.
        channels: of each client.
        request, answer: layouts of the two kinds of messages.
        tag: the first of ``channels`` tags that nothing else on ``comm`` uses.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        clients: Sequence[int],
        channels: int,
        request: Record,
        answer: Record,
        tag: int,
    ) -> None:
        self.bytes_received = 0
        self.bytes_sent = 0
        self._tag = tag
        self._request, self._answer = request, answer
        self._keys = [(client, channel) for client in clients for channel in range(channels)]
        self._at = {key: i for i, key in enumerate(self._keys)}
        roomy = Record([*request.fields, Field("beyond", "uint8", (ROOM,))])
        self._asked = [Slot(roomy) for _ in self._keys]
        self._answers = [Slot(answer) for _ in self._keys]
        self._receives: list[MPI.Prequest] = [
            comm.Recv_init([slot.buffer, MPI.BYTE], source=client, tag=tag + channel)
            for slot, (client, channel) in zip(self._asked, self._keys)
        ]
        self._sends: list[MPI.Prequest] = [
            comm.Send_init([slot.buffer, MPI.BYTE], dest=client, tag=tag + channel)
            for slot, (client, channel) in zip(self._answers, self._keys)
        ]
        for index in range(len(self._keys)):
            self._listen(index)

    def poll(self) -> list[Asked]:
        """What has arrived since the last call, each channel at most once, in order of channels.

        A client asks again only when it was answered. After a fault nothing more is received on
        that channel, though it can still be answered.
        """
        statuses: list[MPI.Status] = []
        failed = False
        try:
            MPI.Request.Testsome(self._receives, statuses)
        except MPI.Exception as error:
            # Every message that arrived has a status, the good ones among them, too.
            if error.Get_error_class() != MPI.ERR_IN_STATUS:
                raise
            failed = True
        return [self._arrived(status, failed) for status in statuses]

    def request(self, client: int, channel: int) -> Slot:
        """What a client asked. It may be read until it is answered."""
        return self._asked[self._at[client, channel]]

    def answer(self, client: int, channel: int) -> Slot:
        """Where the answer is to be written, before ``send``."""
        return self._answers[self._at[client, channel]]

    def send(self, client: int, channel: int, *, last: bool = False) -> None:
        """Sends the answer; the next request of this channel may then come.

        Args:
            client, channel: who asked.
            last: no more requests are expected there.
        """
        index = self._at[client, channel]
        if self._asked[index].busy:
            raise RuntimeError(f"rank {client} has not asked on channel {channel}: answer it later")
        if not last:
            self._listen(index)
        self._answers[index].busy = True
        self._sends[index].Start()
        self.bytes_sent += self._answer.nbytes

    def drained(self) -> bool | None:
        """``True`` when all answers have been received, else ``None``."""
        for request, slot in zip(self._sends, self._answers):
            if slot.busy:
                slot.busy = not request.Test()
        return None if any(slot.busy for slot in self._answers) else True

    def close(self) -> None:
        """Withdraws the posted receives. Call it when no more requests are wanted."""
        for request, slot in zip(self._receives, self._asked):
            if slot.busy:
                request.Cancel()
                request.Wait()
            request.Free()
        for request in self._sends:
            request.Free()

    def _listen(self, index: int) -> None:
        self._asked[index].busy = True
        self._receives[index].Start()

    def _arrived(self, status: MPI.Status, failed: bool) -> Asked:
        client, channel = status.Get_source(), status.Get_tag() - self._tag
        index = self._at[client, channel]
        self._asked[index].busy = False
        # A send that this request follows is complete; its buffer can be written.
        if self._answers[index].busy:
            self._sends[index].Wait()
            self._answers[index].busy = False
        if failed and (code := status.Get_error()) != MPI.SUCCESS:
            fault = f"a request that cannot be received: {MPI.Get_error_string(code)}"
            return Asked(client, channel, fault)
        count = status.Get_count(MPI.BYTE)
        self.bytes_received += count
        if count != self._request.nbytes:
            expected = self._request.nbytes
            return Asked(client, channel, f"{count} bytes where a request has {expected}")
        return Asked(client, channel)


class ExchangeClient:
    """The end that asks.

    Args:
        comm: communicator of both ends.
        server: rank that answers.
        channels, request, answer, tag: as the server's.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        server: int,
        channels: int,
        request: Record,
        answer: Record,
        tag: int,
    ) -> None:
        self._requests = [Slot(request) for _ in range(channels)]
        self._answers = [Slot(answer) for _ in range(channels)]
        self._sends: list[MPI.Prequest] = [
            comm.Send_init([slot.buffer, MPI.BYTE], dest=server, tag=tag + channel)
            for channel, slot in enumerate(self._requests)
        ]
        self._receives: list[MPI.Prequest] = [
            comm.Recv_init([slot.buffer, MPI.BYTE], source=server, tag=tag + channel)
            for channel, slot in enumerate(self._answers)
        ]

    def request(self, channel: int) -> Slot:
        """Where the next request is to be written, before ``ask``."""
        return self._requests[channel]

    def ask(self, channel: int) -> None:
        """Sends the request."""
        for slot in (self._answers[channel], self._requests[channel]):
            if slot.busy:
                raise RuntimeError(f"channel {channel} waits for an answer: it cannot ask again")
            slot.busy = True
        self._receives[channel].Start()  # first, so that the answer finds it posted
        self._sends[channel].Start()

    def answered(self) -> list[int]:
        """Channels whose answers have come since the last call, in order of their numbers."""
        indices = MPI.Request.Testsome(self._receives) or []
        for channel in indices:
            self._sends[channel].Wait()  # at once: it was answered
            self._requests[channel].busy = self._answers[channel].busy = False
        return list(indices)

    def answer(self, channel: int) -> Slot:
        """The answer. It may be read until this channel asks again."""
        return self._answers[channel]

    def progress(self) -> None:
        """Lets MPI move what is under way; microseconds."""
        MPI.Request.Testall([s for s, slot in zip(self._sends, self._requests) if slot.busy])

    def close(self) -> None:
        """Frees the requests. An answer that is still due is not waited for."""
        for receive, send, slot in zip(self._receives, self._sends, self._answers):
            if slot.busy:
                receive.Cancel()
                receive.Wait()
            receive.Free()
            send.Free()  # not waited for either: the server may be gone
