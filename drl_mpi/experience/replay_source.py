"""Batches of single transitions from a replay that fills while it is sampled.

Learning and acting keep a fixed ratio, whichever of them could be faster: a learner waits until so
many steps came, and takes in no more than it needs, so that a stream holds its actors back. How
often a step is trained on is a property of the algorithm, not of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from drl_mpi.comm.parameters import Publisher
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.stream import Delivery, Receiver
from drl_mpi.experience.intake import Intake
from drl_mpi.experience.replay import PrioritizedReplay, UniformReplay
from drl_mpi.experience.source import REPLAY
from drl_mpi.experience.statistics import Statistics
from drl_mpi.experience.transitions import TransitionBatch


class ReplaySource:
    """Fills a replay from unrolls, and samples from it.

    Args:
        receiver: of unroll records.
        replay: their transitions.
        batch: tensors to fill.
        envs: environments per record.
        records: records per unroll of a source, one behind the other.
        poller: waits, and drives the publisher meanwhile.
        publisher: consuming a source's whole unroll puts the publisher in its debt.
        start: rows in the replay before there is anything to learn from.
        steps_per_update: agent decisions taken in per batch; exact, so that no rounding error ever
            makes a batch wait for one record more.
        beta: exponent of the importance weights, by rows taken in; for a prioritised replay.
        in_turn: take records strictly in the order of the sources (lock-step).
    """

    def __init__(
        self,
        receiver: Receiver,
        replay: UniformReplay | PrioritizedReplay,
        batch: TransitionBatch,
        envs: int,
        records: int,
        poller: Poller,
        publisher: Publisher,
        *,
        start: int,
        steps_per_update: Fraction,
        beta: Callable[[], float],
        in_turn: Callable[[int], int] | None = None,
    ) -> None:
        self._intake = Intake(receiver, poller, publisher, records, in_turn)
        self._receiver = receiver
        self._replay = replay
        self._batch = self._sampled = batch
        self._envs = envs
        self._records = records
        self._start = start
        self._cost, self._income = steps_per_update.numerator, steps_per_update.denominator
        """Of a batch, and of a step taken in."""
        self._beta = beta
        self._credit = 0
        """What came in since the replay was warm, less what batches have cost."""
        self._warm = False
        self._in_turn = in_turn is not None
        self._early = Statistics()
        """Of what came while this learner waited for the others."""
        self._ages: list[float] = []

    def next(self) -> TransitionBatch:
        """The next batch, when enough steps came for it.

        While the replay is not warm, a batch that is not ``trainable`` for every record, so that
        the run is seen to go on.
        """
        self._learn_priorities()
        batch = self._batch
        batch.begin()
        batch.absorb(self._early)
        if not self._warm:
            self._take_in()
            batch.trainable = False
            self._warm = self._replay.ready(self._start)
            return batch
        while self._credit < self._cost:
            self._credit += self._income * self._take_in()
        self._credit -= self._cost
        if isinstance(self._replay, PrioritizedReplay):
            self._replay.sample(batch, self._beta())
        else:
            self._replay.sample(batch)
        batch.trainable = True
        self._ages.append(batch.mean_age)
        self._sampled = batch.ready()
        return self._sampled

    def idle(self) -> None:
        """See ``Source.idle``. Not in lock-step, where nobody is ahead of the others."""
        if self._in_turn or self._receiver.ended:
            return
        found = self._intake.poll()
        if found is not None:
            steps = self._store(*found, self._early)
            self._credit += self._income * steps if self._warm else 0

    def drain(self) -> bool | None:
        """See ``Source.drain``."""
        return self._intake.drain()

    def close(self) -> None:
        """See ``Source.close``."""
        self._receiver.close()

    def gauges(self) -> dict[str, float]:
        """Rows in this learner's replay, and the mean age of what was sampled, in rows."""
        age = float(np.mean(self._ages)) if self._ages else float("nan")
        self._ages = []
        return {"replay_size": float(self._replay.size), "replay_age": age}

    def state(self) -> dict[str, Any]:
        """Every actor's RNG."""
        return self._intake.state()

    def keepsakes(self) -> dict[str, Any]:
        """The replay, and how far it is ahead of the updates."""
        self._learn_priorities()
        return {REPLAY: {**self._replay.state(), "credit": self._credit, "warm": self._warm}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``; from an empty replay if it has none."""
        self._intake.restore(state)
        replay = dict(state.get(REPLAY, {}))
        if replay:
            self._credit, self._warm = int(replay.pop("credit")), bool(replay.pop("warm"))
            self._replay.restore(replay)
            self._warm = self._warm and self._replay.ready(1)

    def _take_in(self) -> int:
        """Waits for the next record and stores it; returns its steps."""
        steps = self._store(*self._intake.next(), self._batch)
        self._intake.check()
        return steps

    def _store(self, delivery: Delivery, part: int, statistics: Statistics) -> int:
        fields = delivery.slot.fields
        lane = self._receiver.sources.index(delivery.source) * self._records + part
        try:
            self._replay.add(lane * self._envs, fields)
        except ValueError as error:
            raise ValueError(f"an unroll of rank {delivery.source}: {error}") from error
        statistics.note(fields)
        steps = int(fields["actions"].size)
        self._receiver.release(delivery)
        return steps

    def _learn_priorities(self) -> None:
        """Hands the last batch's errors to the replay: while the gradient travels, not before."""
        batch, self._sampled = self._sampled, self._batch
        if isinstance(self._replay, PrioritizedReplay) and batch.errors is not None:
            errors = batch.errors.cpu().numpy()
            good = np.isfinite(errors)  # the updating decides about a loss that diverges
            self._replay.update(batch.indices[good], batch.generations[good], errors[good])
            batch.errors = None
