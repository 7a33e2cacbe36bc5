"""A vector owned by servers, a shard each: clients push changes and pull the newest values.

A client has one request under way at every server; its answer always carries the server's newest
shard. Vectors travel as they lie in memory: a push is sent from the client's own gradient and an
answer is received into the client's own vector, so on one machine each costs a single copy.

Gradients arrive while others are served: between machines a large one moves only while its client
looks at MPI, and nobody else should wait for a client that does something else meanwhile.

A server never writes into a version that somebody may still be reading: the next version is made
in another buffer, and a buffer comes back when all sends of it have completed. Whatever a client
pulls is one version of the shard, never half of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from drl_mpi.comm.mpi import MPI
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.record import ALIGNMENT, Field, Record, Slot, aligned_bytes

COUNTS = 32
"""Integers of the server's own that every answer carries."""

REQUEST = Record(
    [
        Field("kind", "int64"),
        Field("version", "int64"),
        Field("steps", "int64"),
        Field("command", "int64"),
        Field("rate", "float64"),
    ]
)
ANSWER = Record(
    [
        Field("version", "int64"),
        Field("steps", "int64"),
        Field("command", "int64"),
        Field("counts", "int64", (COUNTS,)),
    ]
)

Vector = npt.NDArray[np.float32]


class Kind(IntEnum):
    """What a client wants of a server."""

    PULL = 1
    """The newest shard."""
    PUSH = 2
    """A change to the shard, then the newest shard."""
    LOAD = 3
    """To replace all that the server holds."""
    SAVE = 4
    """All that the server holds."""
    LEAVE = 5
    """Nothing more, ever."""


PULL, PUSH = Kind.PULL, Kind.PUSH


def split(size: int, servers: int) -> list[tuple[int, int]]:
    """Bounds of contiguous, disjoint shards of a vector that differ by one element at most.

    Raises:
        ValueError: for more servers than elements.
    """
    if not 0 < servers <= size:
        raise ValueError(f"{servers} servers for {size} parameters; allowed: 1 to {size}")
    edges = [size * i // servers for i in range(servers + 1)]
    return list(pairwise(edges))


class ShardClient:
    """The end that pushes and pulls.

    Args:
        comm: communicator of both ends.
        servers: ranks, in the order of their shards.
        vector: float32 ``[size]``; answers are received into it.
        gradient: float32 ``[size]``, sent from where it lies; ``None`` for one that only pulls.
        tag: this and the next three tags are not used for anything else on ``comm``.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        servers: Sequence[int],
        vector: Vector,
        gradient: Vector | None,
        tag: int,
    ) -> None:
        self.answers = [Slot(ANSWER) for _ in servers]
        """Each server's last answer, without its shard. Not to be read while ``busy``."""
        self._comm = comm
        self._servers = tuple(servers)
        self._tag = tag
        self._requests = [Slot(REQUEST) for _ in servers]
        self._ask: list[MPI.Prequest] = []
        self._hear: list[MPI.Prequest] = []
        self._push: list[MPI.Prequest] = []
        for i, (low, high) in enumerate(split(len(vector), len(self._servers))):
            server = self._servers[i]
            self._ask.append(comm.Send_init([self._requests[i].buffer, MPI.BYTE], server, tag))
            self._hear.append(comm.Recv_init([self.answers[i].buffer, MPI.BYTE], server, tag + 2))
            self._hear.append(comm.Recv_init([vector[low:high], MPI.FLOAT], server, tag + 3))
            if gradient is not None:
                self._push.append(comm.Send_init([gradient[low:high], MPI.FLOAT], server, tag + 1))
        self._active: list[MPI.Prequest] = []

    @property
    def busy(self) -> bool:
        """Whether a request is under way: vector and gradient belong to MPI until ``ready``."""
        return bool(self._active)

    def request(
        self,
        kind: Kind,
        versions: Sequence[int],
        *,
        steps: int = 0,
        command: int = 0,
        rate: float = 0.0,
    ) -> None:
        """Starts a PULL, or a PUSH of the gradient, at every server.

        Args:
            kind: which of the two.
            versions: of each shard, that the gradient was computed from.
            steps: to add to the servers' count.
            command: for all clients, at least as large as the last; 0 to leave it.
            rate: learning rate of this gradient.
        """
        if self._active:
            raise RuntimeError("a request is under way; wait until ready() before the next")
        for slot, answer, version in zip(self._requests, self.answers, versions, strict=True):
            answer.busy = True
            for name, value in (
                ("kind", kind), ("version", version), ("steps", steps), ("command", command),
                ("rate", rate),
            ):  # fmt: skip
                slot[name][...] = value
        started = self._hear + self._ask + (self._push if kind is Kind.PUSH else [])
        MPI.Prequest.Startall(started)
        self._active = started

    def ready(self) -> bool | None:
        """Drives the request; ``True`` when every server has answered, else ``None``."""
        if self._active and not MPI.Request.Testall(self._active):
            return None
        self._active = []
        for answer in self.answers:
            answer.busy = False
        return True

    def load(self, shards: Sequence[dict[str, Any]]) -> None:
        """Replaces what each server holds. Pickles: for the start."""
        self._tell(Kind.LOAD)
        for server, shard in zip(self._servers, shards, strict=True):
            self._comm.send(shard, server, self._tag + 1)

    def save(self) -> list[dict[str, Any]]:
        """What each server holds. Pickles: for checkpoints."""
        self._tell(Kind.SAVE)
        return [self._comm.recv(source=server, tag=self._tag + 3) for server in self._servers]

    def leave(self) -> None:
        """Tells the servers that nothing more will come, and frees the requests."""
        self._tell(Kind.LEAVE)
        for request in self._ask + self._hear + self._push:
            request.Free()

    def _tell(self, kind: Kind) -> None:
        if self._active:
            raise RuntimeError("a request is under way; wait until ready() before the next")
        for slot in self._requests:
            slot["kind"][...] = kind
        MPI.Prequest.Startall(self._ask)
        MPI.Request.Waitall(self._ask)  # 320 bytes that a server awaits


@dataclass(frozen=True, slots=True)
class Asked:
    """A client's request as a server sees it."""

    client: int
    """Rank."""
    kind: Kind
    version: int
    steps: int
    command: int
    rate: float


class ShardServer:
    """The end that owns a shard.

    Args:
        comm: communicator of both ends.
        clients: ranks that push and pull.
        size: length of this server's shard.
        poller: waits for MPI.
        tag: as the clients'.
    """

    def __init__(
        self, comm: MPI.Comm, clients: Sequence[int], size: int, poller: Poller, tag: int
    ) -> None:
        self.clients = list(clients)
        """Ranks that have not left."""
        self.vector = _floats(size)
        """float32 ``[size]``: the newest version. Nobody writes into it."""
        self._comm = comm
        self._poller = poller
        self._tag = tag
        self._order = tuple(clients)
        self._slots = [Slot(REQUEST) for _ in clients]
        self._requests: list[MPI.Prequest] = [
            comm.Recv_init([slot.buffer, MPI.BYTE], client, tag)
            for slot, client in zip(self._slots, clients)
        ]
        self._asked = [False] * len(self._order)
        self._answers = {client: Slot(ANSWER) for client in clients}
        self._sending: dict[int, tuple[list[MPI.Request], Vector]] = {}
        self._spare: list[Vector] = []
        self._arriving: dict[int, MPI.Request] = {}
        self._gradients: dict[int, Vector] = {}
        self._spare_gradients: list[Vector] = []
        self._turn = 0
        if clients:
            MPI.Prequest.Startall(self._requests)

    @property
    def asking(self) -> list[int]:
        """Ranks whose request is here and was not handed out yet."""
        return [client for client, asked in zip(self._order, self._asked) if asked]

    def next(self, client: int | None = None) -> Asked | None:
        """The next client's request in turn, or ``None`` if there is none.

        A PUSH is handed out when its gradient is here.

        Args:
            client: the only rank whose PULL or PUSH is wanted (fixed order of service).
        """
        for index in MPI.Request.Testsome(self._requests) or ():
            if self._slots[index]["kind"] == Kind.PUSH:
                self._arriving[index] = self._receive(self._order[index])
            else:
                self._asked[index] = True
        for index, request in list(self._arriving.items()):
            if request.Test():
                del self._arriving[index]
                self._asked[index] = True
        self._collect()
        count = len(self._order)
        for index in ((self._turn + i) % count for i in range(count)):
            due = client is None or client == self._order[index]
            if self._asked[index] and (due or self._slots[index]["kind"] not in (PULL, PUSH)):
                self._asked[index] = False
                self._turn = (index + 1) % count
                return self._read(index)
        return None

    def gradient(self, client: int) -> Vector:
        """What a PUSH brought: float32 ``[size]``, valid until its client is answered."""
        return self._gradients[client]

    def blank(self) -> Vector:
        """A buffer for the next version, which nobody reads."""
        self._collect()
        return self._spare.pop() if self._spare else _floats(len(self.vector))

    def advance(self, vector: Vector) -> None:
        """Makes a buffer that ``blank`` gave the newest version."""
        old, self.vector = self.vector, vector
        if not self._in_flight(old):
            self._spare.append(old)

    def answer(
        self, client: int, *, version: int, steps: int, command: int, counts: Sequence[int]
    ) -> None:
        """Sends the newest version to a client that asked for it."""
        if client in self._sending:  # it has the last answer, or it would not ask; MPI hears later
            self._poller.wait(lambda: self._sent(client), f"rank {client} to take its last answer")
        if client in self._gradients:
            self._spare_gradients.append(self._gradients.pop(client))
        slot = self._answers[client]
        slot["version"][...] = version
        slot["steps"][...] = steps
        slot["command"][...] = command
        slot["counts"][: len(counts)] = counts
        sends = [
            self._comm.Isend([slot.buffer, MPI.BYTE], client, self._tag + 2),
            self._comm.Isend([self.vector, MPI.FLOAT], client, self._tag + 3),
        ]
        slot.busy = True
        self._sending[client] = (sends, self.vector)

    def loaded(self, client: int) -> dict[str, Any]:
        """Receives what a LOAD brings."""
        shard: dict[str, Any] = self._comm.recv(source=client, tag=self._tag + 1)
        return shard

    def saved(self, client: int, shard: dict[str, Any]) -> None:
        """Answers a SAVE."""
        self._comm.send(shard, client, self._tag + 3)

    def drained(self) -> bool | None:
        """``True`` once every client has left and has all its answers, else ``None``."""
        self._collect()
        return True if not self.clients and not self._sending else None

    def close(self) -> None:
        """Frees the requests. Call it when drained."""
        for request in self._requests:
            request.Free()

    def _read(self, index: int) -> Asked:
        slot, client = self._slots[index], self._order[index]
        kind = Kind(int(slot["kind"]))
        asked = Asked(
            client,
            kind,
            int(slot["version"]),
            int(slot["steps"]),
            int(slot["command"]),
            float(slot["rate"]),
        )
        if kind is Kind.LEAVE:
            self.clients.remove(client)
        else:
            self._requests[index].Start()
        return asked

    def _receive(self, client: int) -> MPI.Request:
        spare = self._spare_gradients
        vector = spare.pop() if spare else _floats(len(self.vector))
        self._gradients[client] = vector
        return self._comm.Irecv([vector, MPI.FLOAT], client, self._tag + 1)

    def _collect(self) -> None:
        for client in list(self._sending):
            self._sent(client)

    def _sent(self, client: int) -> bool | None:
        """Whether a client's answer is out; its buffers are free then."""
        sends, vector = self._sending[client]
        if not MPI.Request.Testall(sends):
            return None
        del self._sending[client]
        self._answers[client].busy = False
        if vector is not self.vector and not self._in_flight(vector):
            self._spare.append(vector)
        return True

    def _in_flight(self, vector: Vector) -> bool:
        return any(sent is vector for _, sent in self._sending.values())


def _floats(size: int) -> Vector:
    return aligned_bytes(max(4 * size, ALIGNMENT)).view(np.float32)[:size]
