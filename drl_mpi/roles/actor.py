"""The actor: makes unrolls and sends them to learners."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from drl_mpi.comm.poller import Poller
from drl_mpi.comm.record import Slot
from drl_mpi.comm.stream import Sender
from drl_mpi.experience.rng import pack_rng
from drl_mpi.roles.unroller import Unroller


class Actor:
    """Acts, and sends unrolls until the learners end the run.

    Args:
        unroller: makes unrolls.
        sender: where their records go.
        poller: waits for the stream; its idle time is reported with each unroll.
        rng: generator of the actions; its state is sent along, for the checkpoint.
        clock: seconds.
    """

    def __init__(
        self,
        unroller: Unroller,
        sender: Sender,
        poller: Poller,
        rng: np.random.Generator,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._unroller = unroller
        self._sender = sender
        self._poller = poller
        self._rng = rng
        self._clock = clock

    def run(self) -> None:
        """Makes unrolls until the learners end the run, then ends the stream."""
        records = self._unroller.records
        began, waited = self._clock(), self._poller.idle_s
        while (slots := self._begin(records)) is not None:
            self._unroller.fill(slots)
            now, idle = self._clock(), self._poller.idle_s
            for slot in slots:
                slot["waited_s"][...] = (idle - waited) / records
                slot["worked_s"][...] = (now - began - (idle - waited)) / records
                slot["rng"][:] = pack_rng(self._rng)
                self._sender.send()
            began, waited = now, idle
        self._poller.wait(self._sender.end, "the learner to take the last unrolls")
        self._sender.close()
        self._unroller.acting.close()

    def _begin(self, records: int) -> list[Slot] | None:
        """Restarts if due, waits for slots, then takes up new parameters. ``None``: the end."""
        unroller = self._unroller
        unroller.begin()

        def ready() -> list[Slot] | None:
            slots = self._sender.free(records)
            return [] if slots is None and unroller.acting.stopped else slots

        slots = self._poller.wait(ready, "room in the stream to the learner")
        return slots if slots and unroller.refresh() else None
