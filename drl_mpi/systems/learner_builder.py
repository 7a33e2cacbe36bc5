"""The parts that a learner is put together from, as its system chooses them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch

from drl_mpi import nets
from drl_mpi.comm.shards import ShardClient
from drl_mpi.comm.stream import StreamReceiver, StreamSender
from drl_mpi.comm.world import Group
from drl_mpi.experience.batch import Batch
from drl_mpi.experience.queue import UnrollQueue
from drl_mpi.experience.replay import PrioritizedReplay, UniformReplay
from drl_mpi.experience.replay_source import ReplaySource
from drl_mpi.experience.rng import make_rng
from drl_mpi.experience.transitions import TransitionBatch
from drl_mpi.experience.unroll_replay import UnrollReplay
from drl_mpi.roles.info import WIDTH
from drl_mpi.systems.builder import Builder
from drl_mpi.systems.served import Served
from drl_mpi.systems.system import RankContext, System, patient
from drl_mpi.systems.tags import TAG_REPORTS, TAG_SHARDS
from drl_mpi.updating.allreduce import AllReduceUpdating
from drl_mpi.updating.collectives import Choice, make_gradient_sum
from drl_mpi.updating.local import LocalUpdating
from drl_mpi.updating.optimizers import Optimizer
from drl_mpi.updating.outliers import OutlierFilter
from drl_mpi.updating.protocol import Length, Updating
from drl_mpi.updating.reports import Reports, ReportsReceived, ReportsSent, report_record
from drl_mpi.updating.servers import ServerUpdating

OUTLIER_PATIENCE = 10
"""Rejections in a row that are no outliers but a new level, as after a target network's renewal."""
REPORTS_DEPTH = 2
PRIORITY_EPSILON = 1e-6
"""Keeps every transition drawable (Schaul et al. 2016, section 3.3)."""


class LearnerBuilder(Builder):
    """A learner's rank. Its making is collective over the learners.

    Args:
        config, context: see ``Builder``.
        group: the learners.
    """

    def __init__(self, config: System, context: RankContext, group: Group) -> None:
        super().__init__(config, context)
        self.group = group
        gpu = self.place.gpu
        self.device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        self.net.to(self.device)
        self.flat = nets.FlatParameters(self.net)
        self.sources = config.actors_of(self.world.rank, self.layout)
        """Ranks whose unrolls come here; none if this learner acts for itself."""
        self.updating = config.make_updating(self)
        """Made first: what is made after it, the supply and the source, may use it."""
        self.supply = config.make_supply(self)

    @property
    def learning_rate(self) -> Callable[[int], float]:
        """Steps -> learning rate."""
        config, repeat = self.config, self.prepared.spec.action_repeat
        if not config.annealed:
            return lambda _: config.learning_rate
        return lambda steps: (
            config.learning_rate * max(0.0, 1 - steps * repeat / config.total_frames)
        )

    @property
    def length(self) -> Length:
        """When the run is complete."""
        config = self.config
        steps = -(-config.total_frames // self.prepared.spec.action_repeat)
        return Length(steps, config.updates_per_round(self.layout) if config.lockstep else 1)

    def update_locally(self, optimizer: Optimizer, gradient_sum: Choice = "mpi") -> Updating:
        """In this rank; of several learners, each applies the sum of all gradients.

        Args:
            optimizer: applies them.
            gradient_sum: what sums them, see ``make_gradient_sum``. Collective over the learners.
        """
        local = LocalUpdating(
            self.flat, optimizer, self.learning_rate, self.config.max_gradient_norm, self.length
        )
        if self.group.size == 1:
            return local
        # To connect is for those who are there, and others may still load torch.
        self.group.meet(patient(self.config), "the other learners to load")
        sums = make_gradient_sum(gradient_sum, self.group, self.device, self.poller)
        return AllReduceUpdating(local, self.group, sums, self.poller, WIDTH)

    def update_on_servers(self, config: Served) -> Updating:
        """By parameter servers."""
        if self.device.type == "cpu":
            staging = self.flat.vector.detach().numpy(), self.flat.gradient.numpy()
        else:
            staging = (
                np.zeros(self.prepared.size, dtype=np.float32),
                np.zeros(self.prepared.size, dtype=np.float32),
            )
        return ServerUpdating(
            self.flat,
            staging,
            ShardClient(self.world.comm, self.layout.servers, *staging, TAG_SHARDS),
            self.poller,
            learning_rate=self.learning_rate,
            max_norm=config.max_gradient_norm,
            outliers=OutlierFilter(config.outlier_threshold, patience=OUTLIER_PATIENCE),
            length=self.length,
            leads=self.group.rank == 0,
            reports=self._reports(),
            learners=self.group.size,
            lockstep=config.lockstep,
        )

    def queue(self, batch_size: int, replayed: int = 0, replay_capacity: int = 0) -> UnrollQueue:
        """Unrolls in the order in which they arrive, or as they are made here.

        Args:
            batch_size: environments per batch.
            replayed: of which so many come from a replay.
            replay_capacity: unrolls of single environments in that replay.
        """
        config = self.config
        wide = dataclasses.replace(self.shape, envs=batch_size)
        replay = None
        if replayed:
            rng = make_rng(config.seed, 0, self.group.rank, self.prepared.restarts)
            replay = UnrollReplay(wide, replay_capacity, rng)
        return UnrollQueue(
            self.supply.receiver(),
            [Batch(wide, self.device) for _ in range(self.supply.trainers)],
            self.shape.envs,
            self.poller,
            self.supply.publisher,
            self.records,
            replay=replay,
            fresh=batch_size - replayed,
            in_turn=self._in_turn(),
        )

    def replay(
        self,
        batch_size: int,
        capacity: int,
        *,
        n_steps: int,
        alpha: float,
        beta: Callable[[], float],
        start: int,
        steps_per_update: Fraction,
    ) -> ReplaySource:
        """Single transitions from a replay; prioritised if ``alpha`` is above 0."""
        config, spec = self.config, self.prepared.spec
        rng = make_rng(config.seed, 0, self.group.rank, self.prepared.restarts)
        lanes = max(1, len(self.sources)) * self.records * self.shape.envs
        replay: UniformReplay | PrioritizedReplay
        if alpha:
            replay = PrioritizedReplay(spec, lanes, capacity, n_steps, rng, alpha, PRIORITY_EPSILON)
        else:
            replay = UniformReplay(spec, lanes, capacity, n_steps, rng)
        return ReplaySource(
            self.supply.receiver(),
            replay,
            TransitionBatch(spec, batch_size, self.device),
            self.shape.envs,
            self.records,
            self.poller,
            self.supply.publisher,
            start=start,
            steps_per_update=steps_per_update,
            beta=beta,
            in_turn=self._in_turn(),
        )

    @property
    def records(self) -> int:
        """Records that one unroll of a source brings to this learner."""
        share = 1
        if self.sources:
            share = len(self.config.learners_of(self.sources[0], self.layout))
        return self.config.envs_per_actor // self.shape.envs // share

    def _in_turn(self) -> Callable[[int], int] | None:
        if not self.config.lockstep:
            return None
        sources, records = self.sources or (self.world.rank,), self.records
        return lambda k: sources[k // records % len(sources)]

    def _reports(self) -> Reports:
        comm, learners, record = self.world.comm, self.layout.learners, report_record(WIDTH)
        if self.group.rank == 0:
            receiver = StreamReceiver(comm, learners[1:], record, REPORTS_DEPTH, TAG_REPORTS)
            return ReportsReceived(receiver, self.poller, self.config.lockstep)
        sender = StreamSender(comm, learners[0], record, REPORTS_DEPTH, TAG_REPORTS)
        return ReportsSent(sender, at_once=self.config.lockstep)
