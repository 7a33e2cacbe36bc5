"""A learner's rank: what is slow is done when it is made, what needs other ranks when it runs."""

from __future__ import annotations

import sys
from typing import Any

from drl_mpi.roles.learner import Learner, Rhythm
from drl_mpi.run.checkpoint import load
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.launcher import STOP_SIGNALS, StopSignals
from drl_mpi.systems.inspection import metrics_of
from drl_mpi.systems.journal import RunJournal
from drl_mpi.systems.learner_builder import LearnerBuilder
from drl_mpi.systems.own_part import OwnPart
from drl_mpi.systems.system import stored


class Learning:
    """A learner's rank, ready to run: its environments are open, its replay is restored.

    Args:
        builder: of this rank.

    Raises:
        CheckpointError: the checkpoint, or this learner's part of it, cannot be read.
    """

    def __init__(self, builder: LearnerBuilder) -> None:
        config, prepared = builder.config, builder.prepared
        self._builder = builder
        self._signals = StopSignals()
        if builder.group.rank == 0:
            self._signals.listen(*STOP_SIGNALS)  # now, since what follows may take minutes
            self._announce()
        self._loss = config.make_loss(builder.net, builder.flat)
        self._source = config.make_source(builder)
        self._own = OwnPart(config, prepared, builder.group.rank)
        self._state: dict[str, Any] | None = None
        """Of the checkpoint, until ``run`` goes on from it."""
        if prepared.checkpoint:
            self._state = load(prepared.checkpoint)
            self._own.restore(self._state, self._source, self._loss, builder.updating)

    def run(self) -> bool:
        """Learns to the end of the run. Returns whether that is complete."""
        builder = self._builder
        config, group, updating = builder.config, builder.group, builder.updating
        supply, poller = builder.supply, builder.poller
        saved, metrics = None, None
        if self._state is None:
            updating.start()
        else:
            updating.restore(self._state)
            saved, metrics = self._own.saved(self._state), metrics_of(self._state)
            self._state = None
        # From here on time is measured: that is why these are made now.
        training = supply.training(self._source, self._loss)
        journal = self._journal() if group.rank == 0 else None
        if journal:
            journal.restore(metrics, updating.steps)
        period = config.updates_per_round(builder.layout) if config.lockstep else 0
        rhythm = Rhythm(
            save_every=period * config.checkpoint_unrolls,
            publish_every=period if supply.by_rounds else 0,
        )
        learner = Learner(
            builder.flat,
            self._source,
            self._loss,
            training,
            updating,
            supply.publisher,
            poller,
            rhythm,
            journal,
            group,
            self._own.keep,
            self._gauges,
            saved,
        )
        # The first one has a journal to open, and servers to fill; the others would learn alone.
        group.meet(poller, "the other learners to start")
        complete = learner.run()
        if journal:
            complete = complete or journal.out_of_time
            journal.finish(complete)
        return complete

    def _gauges(self, version: int, steps: int) -> dict[str, float]:
        """See ``Learner.gauges``."""
        builder = self._builder
        numbers = builder.config.gauges(version, steps * builder.prepared.spec.action_repeat)
        return numbers | builder.supply.gauges()

    def _announce(self) -> None:
        """Says what begins; to load it may take a while."""
        prepared, table = self._builder.prepared, self._builder.layout.table()
        RunFolder(self._builder.config.path).write_layout(table)
        print(table, flush=True)
        for path, reason in prepared.skipped:
            print(f"passed over {path}: {reason}", file=sys.stderr, flush=True)
        if prepared.checkpoint:
            print(f"going on from {prepared.checkpoint}", flush=True)

    def _journal(self) -> RunJournal:
        builder = self._builder
        config, prepared, supply = builder.config, builder.prepared, builder.supply
        return RunJournal(
            RunFolder(config.path),
            self._signals,
            stored(config),
            (*config.columns, *supply.columns),
            action_repeat=prepared.spec.action_repeat,
            total_frames=config.total_frames,
            checkpoint_minutes=config.checkpoint_minutes,
            log_seconds=config.log_seconds,
            max_minutes=config.max_minutes,
            restarts=prepared.restarts,
            skipped=prepared.skipped,
            status=supply.status,
        )
