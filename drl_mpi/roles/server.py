"""The parameter server: a shard, an optimiser, and a loop that serves whoever asks.

Imports no torch: a server needs NumPy, MPI and its shard, some 20 MB.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial

from drl_mpi.comm.poller import Poller, Watch
from drl_mpi.comm.shards import Asked, Kind, ShardServer
from drl_mpi.updating.shard import Shard

NOBODY = -1
"""Before a shard is loaded there is nothing to pull."""

log = logging.getLogger(__name__)


class Server:
    """Serves until every client has left.

    Args:
        endpoint: transport; it holds the newest version of the parameters.
        shard: decides about gradients.
        poller: waits for requests.
        order: clients in the order in which they are served (lock-step), or ``None`` to serve
            whoever asks, in turn.
    """

    def __init__(
        self,
        endpoint: ShardServer,
        shard: Shard,
        poller: Poller,
        order: Iterator[int] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._shard = shard
        self._poller = poller
        self._order = order
        self._command = 0
        self._loaded = False
        self._anybody = _named(endpoint.clients)
        self._watch = Watch(endpoint.clients, poller.silence_s)

    def run(self) -> None:
        """Serves, then takes leave."""
        endpoint = self._endpoint
        expected: int | None = None
        while endpoint.clients:
            while self._loaded and self._order and expected not in endpoint.clients:
                expected = next(self._order)
            whose = expected if self._loaded else NOBODY
            who = f"rank {expected}" if self._order and self._loaded else self._anybody
            asked = self._poller.wait(partial(endpoint.next, whose), f"a request of {who}")
            if self._serve(asked):
                expected = None
            self._listen(asked.client)
        self._poller.wait(endpoint.drained, "the clients to take their last answers")
        endpoint.close()
        counts = self._shard.counts
        log.info(
            "version %d; %d gradients applied, %d dropped as stale; staleness %.2f on average, %d "
            "at most; gradients by rank: %s",
            self._shard.version,
            counts.applied,
            counts.stale,
            counts.staleness_sum / max(1, counts.applied + counts.stale),
            counts.staleness_max,
            " ".join(f"{rank}:{n}" for rank, n in sorted(self._shard.pushes.items())),
        )

    def _serve(self, asked: Asked) -> bool:
        """Returns whether that was this client's turn."""
        endpoint, shard = self._endpoint, self._shard
        if asked.kind is Kind.LOAD:
            state = endpoint.loaded(asked.client)
            shard.restore(state)
            vector = endpoint.blank()
            vector[:] = state["vector"]
            endpoint.advance(vector)
            self._loaded = True
            return False
        if asked.kind is Kind.SAVE:
            endpoint.saved(asked.client, shard.state(endpoint.vector))
            return False
        if asked.kind is Kind.LEAVE:
            self._watch.forget(asked.client)
            self._anybody = _named(endpoint.clients)
            return False
        shard.steps += asked.steps
        if asked.kind is Kind.PUSH:
            gradient = endpoint.gradient(asked.client)
            if shard.admit(asked.client, asked.version):
                vector = endpoint.blank()
                shard.apply(endpoint.vector, vector, gradient, asked.rate, asked.client)
                endpoint.advance(vector)
        self._command = max(self._command, asked.command)
        endpoint.answer(
            asked.client,
            version=shard.version,
            steps=shard.steps,
            command=self._command,
            counts=shard.counts.as_numbers(),
        )
        return True

    def _listen(self, client: int) -> None:
        """Who waits for us is not silent."""
        for rank in (client, *self._endpoint.asking):
            if rank in self._endpoint.clients:
                self._watch.heard(rank)
        self._watch.check()


def _named(ranks: Sequence[int]) -> str:
    return f"any of the ranks {', '.join(map(str, ranks))}"
