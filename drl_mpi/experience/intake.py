"""The learner's end of the actors' unrolls: what every source does with what comes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from drl_mpi.comm.parameters import Publisher
from drl_mpi.comm.poller import Poller, Watch
from drl_mpi.comm.stream import Delivery, Receiver


class Intake:
    """Takes unroll records, one after the other.

    Args:
        receiver: of unroll records.
        poller: waits, and drives the publisher meanwhile.
        publisher: consuming an actor's whole unroll puts it in that actor's debt.
        records: records per unroll of an actor.
        in_turn: number of a record -> the rank that it must come from (lock-step). Then it is left
            to the caller when versions are due.
    """

    def __init__(
        self,
        receiver: Receiver,
        poller: Poller,
        publisher: Publisher,
        records: int,
        in_turn: Callable[[int], int] | None,
    ) -> None:
        self.receiver = receiver
        self.rngs: dict[int, npt.NDArray[np.uint64]] = {}
        """Rank -> state of its action RNG after the newest record that was taken."""
        self._poller = poller
        self._publisher = publisher
        self._records = records
        self._in_turn = in_turn
        self._taken = 0
        self._consumed = dict.fromkeys(receiver.sources, 0)
        self._watch = Watch(receiver.sources, poller.silence_s)

    def next(self) -> tuple[Delivery, int]:
        """Waits for the next record; and which of its unroll's records it is, from 0.

        The record must be given back with ``receiver.release``.
        """
        return self._poller.wait(self.poll, "an actor's unroll")

    def poll(self) -> tuple[Delivery, int] | None:
        """As ``next``, or ``None`` if nothing is there."""
        delivery = self._take()
        if delivery is None:
            return None
        source = delivery.source
        self.rngs[source] = np.array(delivery.slot.fields["rng"], dtype=np.uint64)
        part = self._consumed[source] % self._records
        self._consumed[source] += 1
        # One debt per unroll: a version for each record would only queue up behind the first.
        if self._in_turn is None and part == self._records - 1:
            self._publisher.owe(source)
        self._watch.heard(source)
        return delivery, part

    def check(self) -> None:
        """Raises SilenceError for an actor that is stuck while others are not."""
        for source in self.receiver.sources:
            if self.receiver.arrived(source):
                self._watch.heard(source)
        self._watch.check()

    def drain(self) -> bool | None:
        """See ``Source.drain``."""
        if not self.receiver.ended:
            while (delivery := self.receiver.take()) is not None:
                self.receiver.release(delivery)
        return True if self.receiver.ended else None

    def state(self) -> dict[str, Any]:
        """Every actor's RNG."""
        return {"rng": {str(rank): words for rank, words in sorted(self.rngs.items())}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        own = self.receiver.sources
        self.rngs = {
            int(rank): np.asarray(words) for rank, words in state["rng"].items() if int(rank) in own
        }

    def _take(self) -> Delivery | None:
        source = None if self._in_turn is None else self._in_turn(self._taken)
        delivery = self.receiver.take(source)
        if delivery is not None:
            self._taken += 1
        return delivery
