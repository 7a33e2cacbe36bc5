"""The learner: a source of batches, a loss, and a way of updating."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from drl_mpi.comm.parameters import Publisher
from drl_mpi.comm.poller import Poller
from drl_mpi.experience.source import Source
from drl_mpi.experience.statistics import Statistics
from drl_mpi.nets import FlatParameters
from drl_mpi.roles.info import InfoWriter, Summary, summarise
from drl_mpi.roles.loss import Loss
from drl_mpi.roles.training import Training
from drl_mpi.updating.protocol import Updating, Wish

B = TypeVar("B", bound=Statistics)


Mark = tuple[int, int]
"""Steps and version of a checkpoint: which one it is."""


class Journal(Protocol):
    """What the first learner reports to, and who decides when to save and to stop early."""

    def wishes(self) -> tuple[bool, bool]:
        """(save now, stop early)."""
        ...

    def update(
        self,
        version: int,
        steps: int,
        summary: Summary,
        scalars: Mapping[str, float],
        gauges: Callable[[], Mapping[str, float]],
    ) -> None:
        """Takes note of an update. ``gauges`` gives numbers since it was last called."""
        ...

    def save(self, state: dict[str, Any], learners: Sequence[Any]) -> None:
        """Writes a checkpoint of the updating's state and of what every learner handed in."""
        ...

    def note(self, message: str) -> None:
        """Tells the user."""
        ...


class Meeting(Protocol):
    """The learners among themselves; see `comm.world.Group`."""

    def gather(self, value: Any) -> list[Any] | None: ...
    def share(self, value: Any) -> Any: ...
    def meet(self, poller: Poller, what: str, meanwhile: Callable[[], object] = ...) -> None: ...


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When a run in lock-step saves and publishes, in updates of a learner; 0 for one that is free.

    Args:
        save_every: updates between checkpoints, which then do not depend on time.
        publish_every: updates between versions that every actor gets; else each actor gets the
            newest one whenever an unroll of its own was consumed.
    """

    save_every: int = 0
    publish_every: int = 0


class Learner(Generic[B]):
    """Learns until the run is complete or stopped.

    Args:
        flat: the network's parameters.
        source: of batches.
        loss: for the checkpoint of what it keeps.
        training: makes gradients of ``loss`` from batches of ``source``.
        updating: applies them.
        publisher: sends versions to this learner's actors.
        poller: the one that all of these wait with.
        rhythm: of a run in lock-step.
        journal: on the first learner only.
        group: the learners.
        keep: (mark, state) -> name and checksum: writes this learner's part of a checkpoint.
        gauges: (version, steps) -> numbers of the system to log.
        saved: mark of the checkpoint that this run goes on from, if it is its own.
    """

    def __init__(
        self,
        flat: FlatParameters,
        source: Source[B],
        loss: Loss[B],
        training: Training[B],
        updating: Updating,
        publisher: Publisher,
        poller: Poller,
        rhythm: Rhythm,
        journal: Journal | None,
        group: Meeting,
        keep: Callable[[Mark, Mapping[str, Any]], str],
        gauges: Callable[[int, int], Mapping[str, float]] = lambda _version, _steps: {},
        saved: Mark | None = None,
    ) -> None:
        self._flat = flat
        self._source = source
        self._loss = loss
        self._training = training
        self._updating = updating
        self._publisher = publisher
        self._poller = poller
        self._rhythm = rhythm
        self._journal = journal
        self._group = group
        self._keep = keep
        self._gauges = gauges
        self._saved = saved
        poller.background = publisher.progress

    def run(self) -> bool:
        """Learns. Returns whether the run is complete (else it was stopped early)."""
        updating, rhythm = self._updating, self._rhythm
        if not updating.over:
            updating.pull()
            self._publisher.owe_all()
            self._publish()
        info = InfoWriter()
        asked = stopping = False
        while not updating.over and not stopping:
            trained = self._training.next()
            batch, loss = trained.batch, trained.loss
            wish = Wish(*self._journal.wishes()) if self._journal else Wish()
            row = info.write(
                batch, updating.version, waited_s=trained.waited_s, worked_s=trained.worked_s
            )
            if loss is None:
                updating.skip(row, steps=batch.steps, wish=wish)
            else:
                updating.apply(trained.gradient, row, loss=loss, steps=batch.steps, wish=wish)
                if not rhythm.publish_every or updating.rounds % rhythm.publish_every == 0:
                    self._publish()
            self._report(trained.scalars)
            if updating.agreed.stop and not asked and rhythm.save_every and self._journal:
                self._journal.note("lock-step: stopping at the next checkpoint")
            asked = asked or updating.agreed.stop
            if rhythm.save_every:  # a run in lock-step goes on from boundaries only
                saving = loss is not None and updating.rounds % rhythm.save_every == 0
                stopping = asked and saving
            else:
                saving, stopping = updating.agreed.save, asked
            if saving or stopping or updating.over:
                self._save()
                if not (stopping or updating.over):
                    updating.pull()
        self._end()
        return updating.over

    def _publish(self) -> None:
        if not self._publisher.subscribed:
            return
        if self._rhythm.publish_every:
            self._publisher.owe_all()
        self._publisher.publish(
            self._flat.vector.detach().cpu().numpy(), self._updating.version, self._updating.steps
        )

    def _report(self, scalars: Mapping[str, torch.Tensor]) -> None:
        if self._journal is None:
            return
        updating = self._updating
        numbers = {name: float(value) for name, value in scalars.items()}
        if numbers:
            numbers["gradient_norm"] = updating.gradient_norm
        self._journal.update(
            updating.version,
            updating.steps,
            summarise(updating.infos),
            numbers,
            lambda: {
                **self._source.gauges(),
                **updating.gauges(),
                **self._gauges(updating.version, updating.steps),
            },
        )

    def _save(self) -> None:
        """Collective over the learners: nobody pushes while the servers are read."""
        updating, group = self._updating, self._group
        updating.pull()
        # Others may need unrolls before they come, of actors that wait for room in our stream.
        together = "the other learners to come together for a checkpoint"
        group.meet(self._poller, together, self._source.idle)
        updating.settle()
        if len(updating.infos):
            self._report({})
        state = updating.state() if self._journal else None
        counters = {} if state is None else state["counters"]
        mark: Mark = group.share((int(counters.get("steps", 0)), int(counters.get("version", 0))))
        if mark == self._saved:
            return  # nothing was learnt since
        kept = {**self._source.keepsakes(), "loss": self._loss.state()}
        kept |= updating.keepsakes()
        kept = {name: state for name, state in kept.items() if state}
        where = self._keep(mark, kept) if kept else ""
        group.meet(self._poller, "the other learners to write their part of a checkpoint")
        learners = group.gather({**self._source.state(), "kept": where})
        if self._journal and state is not None and learners is not None:
            self._journal.save(state, learners)
        self._saved = mark
        updating.forget()

    def _end(self) -> None:
        """Tells the actors, and takes what they still send until the last has ended."""
        self._updating.close()

        def ready() -> bool | None:
            told, drained = self._publisher.stop(), self._source.drain()
            return True if told and drained else None

        self._poller.wait(ready, "the actors to end their streams")
        self._training.close()
        self._source.close()
