"""An actor in the learner's own rank: what a stream of unrolls looks like without a stream."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from drl_mpi.comm.record import Slot
from drl_mpi.comm.stream import Delivery
from drl_mpi.experience.rng import pack_rng
from drl_mpi.experience.unroll import UnrollShape
from drl_mpi.roles.unroller import Unroller


class OwnUnrolls:
    """Unrolls made when they are asked for; stands in for a `StreamReceiver`.

    Args:
        unroller: makes them, each of one record.
        shape: of the record.
        rank: this one, as the source that they come from.
        rng: generator of the actions.
    """

    depth = 1

    def __init__(
        self,
        unroller: Unroller,
        shape: UnrollShape,
        rank: int,
        rng: np.random.Generator,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.sources: tuple[int, ...] = (rank,)
        self.ended = True
        self._unroller = unroller
        self._slot = Slot(shape.record())
        self._rng = rng
        self._clock = clock

    def take(self, source: int | None = None) -> Delivery | None:  # noqa: ARG002 (there is one)
        """Makes an unroll."""
        self._unroller.begin()
        self._unroller.refresh()
        began = self._clock()
        self._unroller.fill([self._slot])
        self._slot["worked_s"][...] = self._clock() - began
        self._slot["rng"][:] = pack_rng(self._rng)
        return Delivery(self.sources[0], self._slot, 0)

    def arrived(self, source: int) -> bool:  # noqa: ARG002
        """Always: it has only to be made."""
        return True

    def release(self, delivery: Delivery) -> None:
        """Nothing to give back."""

    def gauges(self) -> dict[str, float]:
        """See ``Receiver.gauges``."""
        return {}

    def close(self) -> None:
        """Ends the environments."""
        self._unroller.env.close()
