"""The queue: unrolls are trained on once, in the order in which they arrive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from drl_mpi.comm.parameters import ParameterPublisher
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.stream import Delivery, Receiver
from drl_mpi.experience.batch import Batch
from drl_mpi.experience.intake import Intake
from drl_mpi.experience.unroll_replay import UnrollReplay


class UnrollQueue:
    """Batches of fresh unrolls from a stream, optionally topped up from a replay.

    Args:
        receiver: the stream of unroll records.
        batch: tensors to fill; its width is the batch size.
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
        batch: Batch,
        envs: int,
        poller: Poller,
        publisher: ParameterPublisher,
        records: int = 1,
        *,
        replay: UnrollReplay | None = None,
        fresh: int | None = None,
        in_turn: Callable[[int], int] | None = None,
    ) -> None:
        self.fresh = batch.shape.envs if fresh is None else fresh
        if self.fresh % envs or not 0 < self.fresh <= batch.shape.envs:
            raise ValueError(
                f"{self.fresh} fresh columns cannot be filled with records of {envs} environments"
            )
        self._intake = Intake(receiver, poller, publisher, records, in_turn)
        self._receiver = receiver
        self._batch = batch
        self._envs = envs
        self._replay = replay
        self._held: list[Delivery] = []

    def next(self) -> Batch:
        """Waits until the batch is full. Unrolls are unpacked while others are still due.

        Their slots go back with the next call, when the update that they made was published: an
        actor that waits for room in the stream then finds that version there.
        """
        self._release()
        self._batch.begin()
        for column in range(0, self.fresh, self._envs):
            delivery, _ = self._intake.next()
            fields = delivery.slot.fields
            self._batch.write(column, fields)
            self._batch.note(fields)
            if self._replay is not None:
                self._replay.add(fields)
            self._hold(delivery)
        self._intake.check()
        if self._replay is not None:
            self._replay.fill(self._batch, self.fresh)
        return self._batch.ready()

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
        return {}

    def state(self) -> dict[str, Any]:
        """Every actor's RNG."""
        return self._intake.state()

    def keepsakes(self) -> dict[str, Any]:
        """The replay."""
        return {} if self._replay is None else {"replay": self._replay.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        self._intake.restore(state)
        if self._replay is not None and "replay" in state:
            self._replay.restore(state["replay"])

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
