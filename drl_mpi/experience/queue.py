"""The queue: unrolls are trained on once, in the order in which they arrive."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drl_mpi.comm.parameters import Publisher
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.stream import Delivery, Receiver
from drl_mpi.experience.batch import Batch
from drl_mpi.experience.intake import Intake
from drl_mpi.experience.source import REPLAY
from drl_mpi.experience.unroll_replay import UnrollReplay


class UnrollQueue:
    """Batches of fresh unrolls from a stream, optionally topped up from a replay.

    Args:
        receiver: the stream of unroll records.
        batches: tensors to fill, in turn; their width is the batch size. A batch is valid until
            its turn comes again.
        envs: n, environments per record; divides the number of fresh columns.
        poller: waits, and drives the publisher meanwhile.
        publisher: consuming an actor's whole unroll puts the publisher in its debt.
        records: records per unroll of an actor.
        replay: fills the columns that are not fresh; ``None`` when all are.
        fresh: number of columns that come from the stream.
        in_turn: take records strictly in the order of the sources (lock-step), and leave it to
            the caller when versions are due.
    """

    def __init__(
        self,
        receiver: Receiver,
        batches: Sequence[Batch],
        envs: int,
        poller: Poller,
        publisher: Publisher,
        records: int = 1,
        *,
        replay: UnrollReplay | None = None,
        fresh: int | None = None,
        in_turn: Callable[[int], int] | None = None,
    ) -> None:
        width = batches[0].shape.envs
        self.fresh = width if fresh is None else fresh
        if self.fresh % envs or not 0 < self.fresh <= width:
            raise ValueError(
                f"{self.fresh} fresh columns cannot be filled with records of {envs} environments"
            )
        self._intake = Intake(receiver, poller, publisher, records, in_turn)
        self._receiver = receiver
        self._batches = deque(batches)
        self.taken = 0
        """Records so far."""
        self._column = 0
        """Fresh columns of the present batch that are filled."""
        self._poller = poller
        self._envs = envs
        self._replay = replay
        self._held: list[Delivery] = []

    def next(self) -> Batch:
        """Waits until the batch is full. Unrolls are unpacked while others are still due.

        Their slots go back with the next call, when the update that they made was published: an
        actor that waits for room in the stream then finds that version there.
        """
        self._begin()
        while self._column < self.fresh:
            self._poller.wait(self._take, "an actor's unroll")
        return self._complete()

    def poll(self) -> Batch | None:
        """As ``next``, or ``None`` if the batch is not full yet."""
        self._begin()
        while self._column < self.fresh:
            if not self._take():
                return None
        return self._complete()

    def _begin(self) -> None:
        if self._column == 0:
            self._release()

    def _take(self) -> bool | None:
        """Unpacks the next record if there is one."""
        arrived = self._intake.poll()
        if arrived is None:
            return None
        batch, (delivery, _) = self._batches[0], arrived
        if self._column == 0:
            batch.begin()
        fields = delivery.slot.fields
        batch.write(self._column, fields)
        batch.note(fields)
        if self._replay is not None:
            self._replay.add(fields)
        self._hold(delivery)
        self._column += self._envs
        self.taken += 1
        return True

    def _complete(self) -> Batch:
        batch = self._batches[0]
        self._column = 0
        self._batches.rotate(-1)
        self._intake.check()
        if self._replay is not None:
            self._replay.fill(batch, self.fresh)
        return batch.ready()

    def idle(self) -> None:
        """See ``Source.idle``: an actor feeds one queue only."""

    def drain(self) -> bool | None:
        """Throws away what still arrives; ``True`` once every actor has ended its stream."""
        self._release()
        return self._intake.drain()

    def close(self) -> None:
        """See ``Source.close``."""
        self._receiver.close()

    def gauges(self) -> dict[str, float]:
        """See ``Source.gauges``."""
        return self._receiver.gauges()

    def state(self) -> dict[str, Any]:
        """Every actor's RNG."""
        return self._intake.state()

    def keepsakes(self) -> dict[str, Any]:
        """The replay."""
        return {} if self._replay is None else {REPLAY: self._replay.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        self._intake.restore(state)
        if self._replay is not None and REPLAY in state:
            self._replay.restore(state[REPLAY])

    def _hold(self, delivery: Delivery) -> None:
        self._held.append(delivery)
        same = [held for held in self._held if held.source == delivery.source]
        if len(same) == self._receiver.depth:  # else nothing more could come from there
            self._receiver.release(same[0])
            self._held.remove(same[0])

    def _release(self) -> None:
        for delivery in self._held:
            self._receiver.release(delivery)
        self._held.clear()
