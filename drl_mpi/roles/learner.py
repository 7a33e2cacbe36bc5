"""The learner: a source of batches, a loss, and a way of updating."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from drl_mpi.comm.parameters import ParameterPublisher
from drl_mpi.comm.poller import Poller
from drl_mpi.experience.batch import Batch
from drl_mpi.experience.queue import Source
from drl_mpi.nets import FlatParameters
from drl_mpi.roles.info import InfoWriter, Summary, summarise
from drl_mpi.updating.local import Updating

Loss = Callable[[Batch], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""Batch -> the scalar to differentiate, summed over time and batch, and detached scalars to log."""


class Journal(Protocol):
    """What the first learner reports to, and who decides when to save and to stop early."""

    def wishes(self) -> tuple[bool, bool]:
        """(save now, stop early)."""
        ...

    def update(self, version: int, summary: Summary, scalars: Mapping[str, float]) -> None:
        """Takes note of an update."""
        ...

    def save(self, version: int, state: dict[str, Any], sources: Sequence[Any]) -> None:
        """Writes a checkpoint of the updating's state and of every learner's source."""
        ...

    def note(self, message: str) -> None:
        """Tells the user."""
        ...


@dataclass(frozen=True, slots=True)
class Horizon:
    """When updates stop, save and publish, in versions. All learners compute the same.

    Args:
        end: version with which the run is complete.
        save_every: versions between checkpoints that do not depend on time; 0 for none.
        publish_every: versions between those that every actor gets (lock-step), or 0 to send each
            actor the newest one whenever an unroll of its own was consumed.
    """

    end: int
    save_every: int = 0
    publish_every: int = 0


class Learner:
    """Learns until the horizon or until stopped.

    Args:
        flat: the network's parameters and gradients.
        source: of batches.
        loss: differentiates through the network behind ``flat``.
        updating: applies gradients.
        publisher: sends versions to this learner's actors.
        poller: the one that ``source`` and ``updating`` wait with.
        horizon: when to end.
        journal: on the first learner only.
        gather: learners' states -> all of them at the first learner, ``None`` elsewhere.
    """

    def __init__(
        self,
        flat: FlatParameters,
        source: Source,
        loss: Loss,
        updating: Updating,
        publisher: ParameterPublisher,
        poller: Poller,
        horizon: Horizon,
        journal: Journal | None,
        gather: Callable[[Any], list[Any] | None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._flat = flat
        self._source = source
        self._loss = loss
        self._updating = updating
        self._publisher = publisher
        self._poller = poller
        self._horizon = horizon
        self._journal = journal
        self._gather = gather
        poller.background = publisher.progress
        self._clock = clock

    def run(self) -> bool:
        """Learns. Returns whether the run is complete (else it was stopped early)."""
        updating, horizon = self._updating, self._horizon
        info = InfoWriter()
        if updating.version < horizon.end:
            self._publisher.owe_all()
            self._publisher.publish(self._flat.vector.cpu().numpy(), updating.version)
        began, idle = self._clock(), self._poller.idle_s
        asked = stopping = False
        while updating.version < horizon.end and not stopping:
            batch = self._source.next()
            self._flat.zero_grad()
            loss, scalars = self._loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            save, stop = self._journal.wishes() if self._journal else (False, False)
            now, waited = self._clock(), self._poller.idle_s - idle
            row = info.write(
                batch,
                updating.version,
                waited_s=waited,
                worked_s=now - began - waited,
                save=save,
                stop=stop,
            )
            began, idle = now, self._poller.idle_s
            version = updating.apply(self._flat.gradient, row)
            self._publish(version)
            summary = summarise(updating.infos)
            if self._journal:
                numbers = {name: float(value) for name, value in scalars.items()}
                numbers["gradient_norm"] = updating.gradient_norm
                self._journal.update(version, summary, numbers)
            if summary.stop and not asked and horizon.save_every and self._journal:
                self._journal.note("lock-step: stopping at the next checkpoint")
            asked = asked or summary.stop
            if horizon.save_every:  # a run in lock-step goes on from boundaries only
                saving = version % horizon.save_every == 0
                stopping = asked and saving
            else:
                saving, stopping = summary.save, asked
            if saving or stopping or version >= horizon.end:
                self._save(version)
        self._end()
        return updating.version >= horizon.end

    def _publish(self, version: int) -> None:
        every = self._horizon.publish_every
        if every:
            if version % every:
                return
            self._publisher.owe_all()
        self._publisher.publish(self._flat.vector.cpu().numpy(), version)

    def _save(self, version: int) -> None:
        states = self._gather(self._source.state())
        if self._journal and states is not None:
            self._journal.save(version, self._updating.state(), states)

    def _end(self) -> None:
        """Tells the actors, and takes what they still send until the last has ended."""

        def ready() -> bool | None:
            told, drained = self._publisher.stop(), self._source.drain()
            return True if told and drained else None

        self._poller.wait(ready, "the actors to end their streams")
        self._source.close()
