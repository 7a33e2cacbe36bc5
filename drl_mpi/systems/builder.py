"""Puts the rooms of an actor's or a learner's rank together, as its system chooses them."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from drl_mpi import envs, nets
from drl_mpi.acting.local import Acting, LocalActing, SharedActing
from drl_mpi.acting.parameters import Parameters, PulledParameters
from drl_mpi.comm.parameters import ParameterPublisher, ParameterSubscriber, Publisher
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.relay import RelayingSubscriber
from drl_mpi.comm.shards import ShardClient
from drl_mpi.comm.stream import Receiver, Sender, SpreadSender, StreamReceiver, StreamSender
from drl_mpi.comm.world import Group, World
from drl_mpi.experience.batch import Batch
from drl_mpi.experience.queue import UnrollQueue
from drl_mpi.experience.replay import PrioritizedReplay, UniformReplay
from drl_mpi.experience.replay_source import ReplaySource
from drl_mpi.experience.rng import make_rng, unpack_rng
from drl_mpi.experience.transitions import TransitionBatch
from drl_mpi.experience.unroll import UnrollShape
from drl_mpi.experience.unroll_replay import UnrollReplay
from drl_mpi.roles.actor import Actor
from drl_mpi.roles.bundle import OwnUnrolls
from drl_mpi.roles.info import WIDTH
from drl_mpi.roles.learner import Learner, Mark, Rhythm
from drl_mpi.roles.training import OwnTraining, Training
from drl_mpi.roles.unroller import Pace, Unroller
from drl_mpi.run.checkpoint import CheckpointError, Checkpoints, load
from drl_mpi.run.checkpoint_parts import PARTS, part_path
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.layout import Layout
from drl_mpi.systems.central import COLUMNS, Central
from drl_mpi.systems.inspection import metrics_of
from drl_mpi.systems.journal import RunJournal
from drl_mpi.systems.network import make_net
from drl_mpi.systems.served import Served
from drl_mpi.systems.service import Service
from drl_mpi.systems.system import Prepared, System, stored, yield_cores
from drl_mpi.systems.tags import TAG_PARAMETERS, TAG_REPORTS, TAG_SHARDS, TAG_UNROLLS
from drl_mpi.updating.allreduce import AllReduceUpdating
from drl_mpi.updating.collectives import Choice, make_gradient_sum
from drl_mpi.updating.local import LocalUpdating
from drl_mpi.updating.optimizers import Optimizer
from drl_mpi.updating.outliers import OutlierFilter
from drl_mpi.updating.protocol import Length, Updating
from drl_mpi.updating.reports import Reports, ReportsReceived, ReportsSent, report_record
from drl_mpi.updating.servers import ServerUpdating, is_last

log = logging.getLogger(__name__)

OUTLIER_PATIENCE = 10
"""Rejections in a row that are no outliers but a new level, as after a target network's renewal."""
REPORTS_DEPTH = 2


class Builder:
    """One rank's rooms.

    Args:
        config: the system.
        world, layout, prepared: as ``System.play`` has them.
        poller: of this rank.
        group: the learners; ``None`` on an actor.
    """

    def __init__(
        self,
        config: System,
        world: World,
        layout: Layout,
        prepared: Prepared,
        poller: Poller,
        group: Group | None,
    ) -> None:
        self.config = config
        self.world = world
        self.layout = layout
        self.prepared = prepared
        self.poller = poller
        self.place = layout.ranks[world.rank]
        torch.set_num_threads(self.place.threads)
        nets.keep_freed_memory()
        self.net = make_net(config, prepared.spec)
        self._group = group
        self._saved: Mark | None = None
        gpu = self.place.gpu
        self.device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        if group is not None:
            self.net.to(self.device)
            self.flat = nets.FlatParameters(self.net)
            self.sources = config.actors_of(world.rank, layout)
            """Ranks whose unrolls come here; none if this learner acts for itself."""
            self.updating: Updating
            self.publisher: Publisher
        self.shape = UnrollShape(
            prepared.spec, config.unroll_length, config.record_envs(layout), self.net.state_shape
        )
        self.service: Service | None = None
        """What serves actors without a network, on their learner."""
        if group is not None:
            self.publisher = self._publisher()

    def _publisher(self) -> Publisher:
        config = self.config
        if isinstance(config, Central) and config.central:
            self.service = Service(config, self)
            return self.service.acting
        subscribers = () if config.served else self.layout.published_by(self.world.rank)
        return ParameterPublisher(self.world.comm, subscribers, self.prepared.size, TAG_PARAMETERS)

    @property
    def group(self) -> Group:
        """The learners, on one of them."""
        assert self._group is not None
        return self._group

    @property
    def acts_itself(self) -> bool:
        """Whether learners have environments of their own."""
        return not self.layout.actors

    @property
    def acting_index(self) -> int:
        """This rank's number among those with environments."""
        return self.place.index

    @property
    def acting_ranks(self) -> int:
        """Ranks with environments."""
        return len(self.layout.actors) or len(self.layout.learners)

    # -- an actor -------------------------------------------------------------------------------

    def act(self) -> bool:
        """Plays an actor to the end of the run."""
        config = self.config
        yield_cores(self.layout, self.place)
        rng = self._acting_rng()
        parameters, sender = self._parameters(), self._sender()
        acting = LocalActing(self.net, parameters, self.poller, config.choose(self), rng)

        def progress() -> None:
            sender.progress()
            parameters.progress()

        unroller = self._unroller(acting, rng, progress)
        Actor(unroller, sender, self.poller, rng).run()
        return False

    def _parameters(self) -> Parameters:
        comm, config = self.world.comm, self.config
        if not isinstance(config, Served):
            rank, size = self.world.rank, self.prepared.size
            publisher, followers = self.layout.publisher_to(rank), self.layout.published_by(rank)
            if not followers:
                return ParameterSubscriber(comm, publisher, size, TAG_PARAMETERS)
            return RelayingSubscriber(comm, publisher, followers, size, TAG_PARAMETERS, self.poller)
        vector = np.zeros(self.prepared.size, dtype=np.float32)
        servers = self.layout.servers
        return PulledParameters(
            ShardClient(comm, servers, vector, None, TAG_SHARDS),
            vector,
            len(servers),
            config.pull_every,
            is_last,
            in_turn=config.lockstep,
        )

    def _sender(self) -> Sender:
        config, records = self.config, self.config.envs_per_actor // self.shape.envs
        learners = config.learners_of(self.world.rank, self.layout)
        depth = config.stream_depth * records // len(learners)
        senders = [
            StreamSender(self.world.comm, learner, self.shape.record(), depth, TAG_UNROLLS)
            for learner in learners
        ]
        return senders[0] if len(senders) == 1 else SpreadSender(senders, records)

    def _acting_rng(self) -> np.random.Generator:
        rng = make_rng(self.config.seed, 1 + self.acting_index, self.prepared.restarts)
        stored = (self.prepared.rngs or {}).get(self.world.rank)
        if stored is not None:
            unpack_rng(rng, stored)
        return rng

    def _unroller(
        self, acting: Acting, rng: np.random.Generator, progress: Callable[[], object]
    ) -> Unroller:
        config, index, prepared = self.config, self.acting_index, self.prepared

        def restart(epoch: int) -> int:
            if config.lockstep:
                fresh = make_rng(config.seed, 1 + index, epoch)
                rng.bit_generator.state = fresh.bit_generator.state
            return envs.seed_for(config.seed, index, config.envs_per_actor, epoch)

        return Unroller(
            envs.make(config.env, config.envs_per_actor, config.env_options),
            acting,
            self.shape,
            gamma=config.gamma,
            reward_clip=config.reward_clip,
            restart=restart,
            epoch=prepared.restarts,
            pace=self.pace,
            progress=progress,
        )

    @property
    def pace(self) -> Pace | None:
        """Of actors in lock-step."""
        config, prepared = self.config, self.prepared
        if not config.lockstep:
            return None
        return Pace(
            config.updates_per_round(self.layout),
            config.checkpoint_unrolls,
            prepared.rounds,
            0 if prepared.checkpoint else config.warm_up_unrolls(self.layout),
            by_number=not config.served,
        )

    # -- a learner ------------------------------------------------------------------------------

    def learn(self) -> bool:
        """Plays a learner to the end of the run. Returns whether that is complete."""
        config, group = self.config, self.group
        self.updating = config.make_updating(self)
        loss = config.make_loss(self.net, self.flat)
        source = config.make_source(self)
        training: Training[Any]
        if self.service:
            assert isinstance(source, UnrollQueue)
            training = self.service.training(source)
        else:
            training = OwnTraining(self.flat, source, loss, self.updating, self.poller)
        journal = self._journal() if group.rank == 0 else None
        metrics = self._restore(loss, source)
        if journal:
            journal.restore(metrics, self.updating.steps)
        period = config.updates_per_round(self.layout) if config.lockstep else 0
        learner = Learner(
            self.flat,
            source,
            loss,
            training,
            self.updating,
            self.publisher,
            self.poller,
            Rhythm(
                save_every=period * config.checkpoint_unrolls,
                publish_every=0 if self.service else period,
            ),
            journal,
            group,
            self._keep,
            self._gauges,
            self._saved,
        )
        # Ranks load for seconds; without this the first one there would learn alone.
        group.meet(self.poller, "the other learners to start")
        complete = learner.run()
        if journal:
            complete = complete or journal.out_of_time
            journal.finish(complete)
        return complete

    def _gauges(self, version: int, steps: int) -> dict[str, float]:
        """See ``Learner.gauges``."""
        numbers = self.config.gauges(version, steps * self.prepared.spec.action_repeat)
        return numbers | (self.service.gauges() if self.service else {})

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
        trainers = self.service.most.trainers if self.service else 1
        replay = None
        if replayed:
            rng = make_rng(config.seed, 0, self.group.rank, self.prepared.restarts)
            replay = UnrollReplay(wide, replay_capacity, rng)
        return UnrollQueue(
            self._receiver(),
            [Batch(wide, self.device) for _ in range(trainers)],
            self.shape.envs,
            self.poller,
            self.publisher,
            self._records,
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
        lanes = max(1, len(self.sources)) * self._records * self.shape.envs
        replay: UniformReplay | PrioritizedReplay
        if alpha:
            replay = PrioritizedReplay(spec, lanes, capacity, n_steps, rng, alpha, PRIORITY_EPSILON)
        else:
            replay = UniformReplay(spec, lanes, capacity, n_steps, rng)
        return ReplaySource(
            self._receiver(),
            replay,
            TransitionBatch(spec, batch_size, self.device),
            self.shape.envs,
            self._records,
            self.poller,
            self.publisher,
            start=start,
            steps_per_update=steps_per_update,
            beta=beta,
            in_turn=self._in_turn(),
        )

    @property
    def _records(self) -> int:
        """Records that one unroll of a source brings to this learner."""
        share = 1
        if self.sources:
            share = len(self.config.learners_of(self.sources[0], self.layout))
        return self.config.envs_per_actor // self.shape.envs // share

    def _receiver(self) -> Receiver:
        if self.service:
            return self.service.acting
        if not self.acts_itself:
            depth = self.config.stream_depth * self._records
            return StreamReceiver(
                self.world.comm, self.sources, self.shape.record(), depth, TAG_UNROLLS
            )
        rng = self._acting_rng()
        acting = SharedActing(self.net, self.updating, self.config.choose(self), rng)
        unroller = self._unroller(acting, rng, lambda: None)
        return OwnUnrolls(unroller, self.shape, self.world.rank, rng)

    def _in_turn(self) -> Callable[[int], int] | None:
        if not self.config.lockstep:
            return None
        sources, records = self.sources or (self.world.rank,), self._records
        return lambda k: sources[k // records % len(sources)]

    def _reports(self) -> Reports:
        comm, learners, record = self.world.comm, self.layout.learners, report_record(WIDTH)
        if self.group.rank == 0:
            receiver = StreamReceiver(comm, learners[1:], record, REPORTS_DEPTH, TAG_REPORTS)
            return ReportsReceived(receiver, self.poller, self.config.lockstep)
        sender = StreamSender(comm, learners[0], record, REPORTS_DEPTH, TAG_REPORTS)
        return ReportsSent(sender, at_once=self.config.lockstep)

    def _journal(self) -> RunJournal:
        config, prepared = self.config, self.prepared
        folder = RunFolder(config.path)
        folder.write_layout(self.layout.table())
        print(self.layout.table(), flush=True)
        for path, reason in prepared.skipped:
            print(f"passed over {path}: {reason}", file=sys.stderr, flush=True)
        if prepared.checkpoint:
            print(f"going on from {prepared.checkpoint}", flush=True)
        return RunJournal(
            folder,
            stored(config),
            (*config.columns, *(COLUMNS if self.service else ())),
            action_repeat=prepared.spec.action_repeat,
            total_frames=config.total_frames,
            checkpoint_minutes=config.checkpoint_minutes,
            log_seconds=config.log_seconds,
            max_minutes=config.max_minutes,
            restarts=prepared.restarts,
            skipped=prepared.skipped,
            status=self.service.status if self.service else str,
        )

    def _keep(self, mark: Mark, state: Mapping[str, Any]) -> str:
        """See ``Learner.keep``."""
        checkpoints = Checkpoints(RunFolder(self.config.path).checkpoints)
        steps, version = mark
        # Several updates may share a count of steps: each save has parts of its own.
        name = f"{self._part}{version}"
        frames = steps * self.prepared.spec.action_repeat
        return f"{name} {checkpoints.save_part(frames, name, state)}"

    @property
    def _part(self) -> str:
        return f"learner-{self.group.rank}-"

    def _restore(self, loss: Any, source: Any) -> dict[str, Any] | None:
        """Goes on from the checkpoint. Returns what the journal needs of it."""
        checkpoint = self.prepared.checkpoint
        if checkpoint is None:
            if isinstance(self.updating, ServerUpdating):
                self.updating.start()
            return None
        state = load(checkpoint)
        self.updating.restore(state)
        kept: dict[str, Any] = {}
        own: list[str] = [name for name in state.get(PARTS, {}) if name.startswith(self._part)]
        if own:
            kept = load(part_path(checkpoint, own[0]))
        elif self.config.replay_size():
            log.info("no part of %s... in the checkpoint: its replay starts empty", self._part)
        if checkpoint.parent == RunFolder(self.config.path).checkpoints:
            counters = state["counters"]
            self._saved = int(counters["steps"]), int(counters["version"])
        try:
            source.restore({"rng": state["rng"], **kept})
            if kept.get("loss"):
                loss.restore(kept["loss"])
            if "outliers" in kept and isinstance(self.updating, ServerUpdating):
                self.updating.outliers.restore(kept["outliers"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the part of {self._part}... of checkpoint {checkpoint} lacks or garbles {error}; "
                "use another checkpoint"
            ) from error
        return metrics_of(state)


PRIORITY_EPSILON = 1e-6
"""Keeps every transition drawable (Schaul et al. 2016, section 3.3)."""
