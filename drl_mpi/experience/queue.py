"""The queue: unrolls are trained on once, in the order in which they arrive."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from drl_mpi.comm.parameters import ParameterPublisher
from drl_mpi.comm.poller import Poller, SilenceError
from drl_mpi.comm.stream import Delivery, StreamReceiver
from drl_mpi.experience.batch import Batch
from drl_mpi.experience.replay import UniformReplay


class Source(Protocol):
    """Where a learner's batches come from."""

    def next(self) -> Batch:
        """The next batch; valid until the call after this one."""
        ...

    def drain(self) -> bool | None:
        """Throws away what still arrives; ``True`` once nothing more will, else ``None``."""
        ...

    def close(self) -> None:
        """Gives back what MPI holds. Call it when drained."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to go on."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        ...


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
        receiver: StreamReceiver,
        batch: Batch,
        envs: int,
        poller: Poller,
        publisher: ParameterPublisher,
        records: int = 1,
        *,
        replay: UniformReplay | None = None,
        fresh: int | None = None,
        in_turn: Callable[[int], int] | None = None,
    ) -> None:
        self.fresh = batch.shape.envs if fresh is None else fresh
        if self.fresh % envs or not 0 < self.fresh <= batch.shape.envs:
            raise ValueError(
                f"{self.fresh} fresh columns cannot be filled with records of {envs} environments"
            )
        self.rngs: dict[int, np.ndarray[Any, np.dtype[np.uint64]]] = {}
        """Rank -> state of its action RNG after the newest unroll that was consumed."""
        self._receiver = receiver
        self._batch = batch
        self._envs = envs
        self._poller = poller
        self._publisher = publisher
        self._replay = replay
        self._in_turn = in_turn
        self._records = records
        self._consumed = dict.fromkeys(receiver.sources, 0)
        self._taken = 0
        self._held: list[Delivery] = []
        self._heard: dict[int, float] = {}

    def next(self) -> Batch:
        """Waits until the batch is full. Unrolls are unpacked while others are still due.

        Their slots go back with the next call, when the update that they made was published: an
        actor that waits for room in the stream then finds that version there.
        """
        self._release()
        self._batch.begin()
        for column in range(0, self.fresh, self._envs):
            delivery = self._poller.wait(self._take, "an actor's unroll")
            fields = delivery.slot.fields
            self._batch.write(column, fields)
            self._batch.note(column, fields)
            self.rngs[delivery.source] = np.array(fields["rng"], dtype=np.uint64)
            if self._replay is not None:
                self._replay.add(fields)
            self._hold(delivery)
            self._heard[delivery.source] = time.monotonic()
            # One debt per unroll: a version for each record would only queue up behind the first.
            self._consumed[delivery.source] += 1
            if self._in_turn is None and self._consumed[delivery.source] % self._records == 0:
                self._publisher.owe(delivery.source)
        self._check_silence()
        if self._replay is not None:
            self._replay.fill(self._batch, self.fresh)
        return self._batch.ready()

    def drain(self) -> bool | None:
        """Throws away what still arrives; ``True`` once every actor has ended its stream."""
        self._release()
        while (delivery := self._receiver.take()) is not None:
            self._receiver.release(delivery)
        return True if self._receiver.ended else None

    def close(self) -> None:
        """See ``Source.close``."""
        self._receiver.close()

    def state(self) -> dict[str, Any]:
        """The replay, and every actor's RNG."""
        state: dict[str, Any] = {
            "rng": {str(rank): words for rank, words in sorted(self.rngs.items())}
        }
        if self._replay is not None:
            state["replay"] = self._replay.state()
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        own = self._receiver.sources
        self.rngs = {
            int(rank): np.asarray(words) for rank, words in state["rng"].items() if int(rank) in own
        }
        if self._replay is not None and "replay" in state:
            self._replay.restore(state["replay"])

    def _check_silence(self) -> None:
        """One stuck actor among many would only make a run slower, and nobody would notice."""
        now = time.monotonic()
        for source in self._receiver.sources:
            if self._receiver.arrived(source):
                self._heard[source] = now
            silent = now - self._heard.setdefault(source, now)
            if silent > self._poller.silence_s:
                raise SilenceError(
                    f"rank {source} has sent no unroll for {silent:.0f} s, longer than the silence "
                    f"timeout of {self._poller.silence_s:.0f} s: it is stuck, or its link is cut. "
                    "See its log in the run folder; raise the silence timeout if it is merely slow"
                )

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

    def _take(self) -> Delivery | None:
        source = None if self._in_turn is None else self._in_turn(self._taken)
        delivery = self._receiver.take(source)
        if delivery is not None:
            self._taken += 1
        return delivery
