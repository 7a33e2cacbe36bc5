"""Systems of actors that send unrolls to learners: local acting, a queue, local or summed updates.

A system of this family is a subclass: its published settings and its loss.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from drl_mpi import envs, nets
from drl_mpi.acting import LocalActing
from drl_mpi.comm.parameters import ParameterPublisher, ParameterSubscriber
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.stream import StreamReceiver, StreamSender
from drl_mpi.comm.world import Group, World
from drl_mpi.envs import EnvSpec
from drl_mpi.errors import EXIT_OK, EXIT_STOPPED, UsageError
from drl_mpi.experience import Batch, UniformReplay, UnrollQueue, UnrollShape
from drl_mpi.experience.rng import make_rng, unpack_rng
from drl_mpi.experience.unroll import RNG_WORDS
from drl_mpi.roles import Actor, Learner, Pace
from drl_mpi.roles.info import WIDTH
from drl_mpi.roles.learner import Horizon, Loss
from drl_mpi.run import resume
from drl_mpi.run.checkpoint import CheckpointError, check_arrays, load
from drl_mpi.run.counting import Counting
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.launcher import STOP_SIGNALS
from drl_mpi.run.layout import Layout
from drl_mpi.run.meters import Metrics
from drl_mpi.systems.config import RunConfig
from drl_mpi.systems.journal import RunJournal
from drl_mpi.updating.allreduce import AllReduceUpdating
from drl_mpi.updating.local import LocalUpdating, Updating
from drl_mpi.updating.optimizers import Optimizer

log = logging.getLogger(__name__)

ACTOR_NICENESS = 5


TAG_UNROLLS = 1
TAG_PARAMETERS = 2


@dataclass(frozen=True)
class Prepared:
    """What rank 0 found out before the start, for all ranks."""

    spec: EnvSpec
    checkpoint: Path | None = None
    """Where to go on from."""
    version: int = 0
    steps: int = 0
    restarts: int = 0
    """Checkpoints that the run went on from so far: each start draws other environment seeds."""
    rngs: dict[int, npt.NDArray[np.uint64]] | None = None
    """Rank -> state of its action RNG."""
    skipped: tuple[tuple[Path, str], ...] = ()
    """Newer checkpoints that are damaged, and why."""


@dataclass(frozen=True, kw_only=True)
class ActorLearner(RunConfig):
    """The family's rooms, put together."""

    # Declared here, since this room reads them; each system sets defaults and names its source.
    unroll_length: int
    batch_size: int
    gamma: float
    reward_clip: float
    learning_rate: float
    max_gradient_norm: float
    replay_fraction: float
    replay_capacity: int

    servers: ClassVar[int] = 0

    def make_loss(self, net: nets.Network) -> Loss:
        """The system's loss through ``net``."""
        raise NotImplementedError

    def make_optimizer(self) -> Optimizer:
        """The system's optimiser."""
        raise NotImplementedError

    def check(self) -> None:
        """See ``RunConfig.check``."""
        super().check()
        for name, low, high in (
            ("unroll_length", 1, 10_000),
            ("batch_size", 1, 1_000_000),
            ("gamma", 0.0, 1.0),
            ("reward_clip", 0.0, 1e9),
            ("learning_rate", 0.0, 1e3),
            ("max_gradient_norm", 1e-9, 1e9),
            ("replay_capacity", 1, 10**9),
        ):
            self._within(name, low, high)
        try:
            self.make_optimizer()
        except ValueError as error:
            raise UsageError(f"the optimiser's settings cannot work: {error}") from error
        if not 0.0 <= self.replay_fraction < 1.0:
            raise UsageError(
                f"--replay-fraction is {self.replay_fraction}; allowed: 0 to below 1, since some "
                "of each batch must be fresh"
            )
        replayed = self.batch_size * self.replay_fraction
        if abs(replayed - round(replayed)) > 1e-9:
            raise UsageError(
                f"--replay-fraction {self.replay_fraction} of --batch-size {self.batch_size} is "
                f"{replayed:g} unrolls; it must be a whole number: change either"
            )

    def check_layout(self, layout: Layout) -> None:
        """Refuses layouts that cannot fill batches, or not in a fixed order."""
        if not layout.actors:
            raise UsageError(
                f"--actors 0: {self.name}'s learners do not act; give at least 1 actor per learner"
            )
        for learner in layout.learners:
            round_envs = len(layout.actors_of(learner)) * self.envs_per_actor
            if self.lockstep and round_envs % self.fresh:
                raise UsageError(
                    f"--lockstep: the {round_envs} environments of a learner's actors do not make "
                    f"whole batches of {self.fresh} fresh unrolls; choose --batch-size or "
                    "--envs-per-actor so that they do"
                )
        if self.lockstep and len({len(layout.actors_of(r)) for r in layout.learners}) > 1:
            raise UsageError(
                f"--lockstep: {len(layout.actors)} actors do not spread evenly over "
                f"{len(layout.learners)} learners; make --actors a multiple of --learners"
            )

    @property
    def fresh(self) -> int:
        """Columns of a batch that come straight from actors."""
        return self.batch_size - round(self.batch_size * self.replay_fraction)

    def unroll_shape(self, spec: EnvSpec, net: nets.Network) -> UnrollShape:
        """Of the records: as many environments as both actors and batches can be cut into."""
        width = gcd(self.envs_per_actor, self.fresh)
        return UnrollShape(spec, self.unroll_length, width, net.state_shape)

    def make_net(self, spec: EnvSpec) -> nets.Network:
        """The network, equal on every rank.

        Raises:
            UsageError: for one that cannot take the environment's observations.
        """
        shape = spec.observation_shape
        try:
            net = nets.make(
                nets.default_net(shape) if self.net == "auto" else self.net,
                shape,
                spec.num_actions,
                core=None if self.core == "none" else self.core,
                seed=self.seed,
            )
        except ValueError as error:
            raise UsageError(f"--net {self.net}: {error}") from error
        net.precision = self.precision
        return net

    def gpus(self) -> int:
        """See ``run.launch.Job.gpus``."""
        found = 0 if self.device == "cpu" else torch.cuda.device_count()
        if self.device == "cuda" and not found:
            raise UsageError(
                "--device cuda, but torch sees no GPU here; use --device cpu, or install a torch "
                "built for CUDA and ask the scheduler for GPUs"
            )
        return found

    # -- before the start -----------------------------------------------------------------------

    def inspect(self) -> Prepared | None:
        """See ``run.launch.Job.inspect``."""
        spec = envs.probe(self.env, self.env_options)
        net = self.make_net(spec)
        folder = RunFolder(self.path)
        found = resume.find(folder, self.resume, self.identity())
        if found is None:
            return Prepared(spec)
        prepared = self._check_checkpoint(spec, net, found)
        frames = prepared.steps * spec.action_repeat
        minutes = float(found.state["session"]["time_s"]) / 60
        over = 0 < self.max_minutes <= minutes and found.own
        if frames < self.total_frames and not (over and folder.is_done()):
            return prepared
        if not found.own:
            raise UsageError(
                f"--resume {found.path} has {frames:,} frames, and --total-frames is "
                f"{self.total_frames:,}; there is nothing left to do: raise --total-frames"
            )
        if folder.is_done():
            print(
                f"{folder.path} is finished: {frames:,} frames, {minutes:.1f} minutes. Raise "
                "--total-frames or --max-minutes to go on, or choose another --run-dir"
            )
            return None
        return prepared

    def claim(self, *, clear_stop: bool) -> None:
        """See ``run.launch.Job.claim``."""
        folder = RunFolder(self.path)
        folder.prepare()
        folder.lock()
        if clear_stop:
            folder.clear_stop()
        folder.clear_done()
        folder.write_config(self.as_dict())

    def _check_checkpoint(self, spec: EnvSpec, net: nets.Network, found: resume.Found) -> Prepared:
        path, state = found.path, found.state
        try:
            expected = {
                name: (tuple(p.shape), np.dtype(np.float32)) for name, p in net.named_parameters()
            }
            check_arrays(state["model"], expected, what=f"{path}: /model")
            for slot, arrays in state["optimizer"].items():
                check_arrays(arrays, expected, what=f"{path}: /optimizer/{slot}")
            Metrics().restore(_metrics(state), 0)
            LocalUpdating(
                nets.FlatParameters(net), self.make_optimizer(), lambda _: 0.0, 1.0
            ).restore(state)
            numbers = {**state["counters"], "restarts": state["session"]["restarts"]}
            for name, value in numbers.items():
                if not 0 <= int(value) < 2**62:
                    raise ValueError(f"{name} = {value}")
            for rank, words in state["rng"].items():
                if words.shape != (RNG_WORDS,) or words.dtype != np.uint64:
                    raise ValueError(f"/rng/{rank}")
            if not all(np.isfinite(array).all() for array in state["model"].values()):
                raise ValueError("/model, which is not finite")
            return Prepared(
                spec,
                path,
                int(state["counters"]["version"]),
                int(state["counters"]["steps"]),
                int(state["session"]["restarts"]) + 1,
                {int(rank): np.asarray(words) for rank, words in state["rng"].items()},
                tuple(found.skipped),
            )
        except CheckpointError as error:
            raise UsageError(str(error)) from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UsageError(
                f"checkpoint {path} lacks or garbles {error}; it was not made by this system"
            ) from error

    # -- on the ranks ---------------------------------------------------------------------------

    def play(self, world: World, layout: Layout, prepared: Prepared) -> int:
        """See ``run.launch.Job.play``. Collective."""
        place = layout.ranks[world.rank]
        torch.set_num_threads(place.threads)
        nets.keep_freed_memory()
        group = world.group(layout.learners)
        net = self.make_net(prepared.spec)
        shape = self.unroll_shape(prepared.spec, net)
        poller = Poller(self.silence_timeout)
        log.info("%s %d on %s, %d threads", place.role, place.index, place.host, place.threads)
        if group is None or group.rank:
            # Only the first learner listens to signals; the others end when it says so.
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        complete = False
        if group is None:
            if place.cores is not None and layout.ranks_on(place.host) > place.cores:
                # Where ranks share cores, learners go first: else unrolls queue up and grow old.
                os.nice(ACTOR_NICENESS)
            self._make_actor(world, layout, prepared, net, shape, poller).run()
        else:
            complete = self._learn(world, layout, prepared, net, shape, poller, group)
        complete = world.share_flag(complete, poller, "the first learner to finish")
        log.info("%s", "finished" if complete else "stopped early")
        return EXIT_OK if complete else EXIT_STOPPED

    def _make_actor(
        self,
        world: World,
        layout: Layout,
        prepared: Prepared,
        net: nets.Network,
        shape: UnrollShape,
        poller: Poller,
    ) -> Actor:
        index, learner = layout.ranks[world.rank].index, layout.learner_of(world.rank)
        size = sum(p.numel() for p in net.parameters())
        rng = make_rng(self.seed, 1 + index, prepared.restarts)
        stored = (prepared.rngs or {}).get(world.rank)
        if stored is not None:
            unpack_rng(rng, stored)

        def restart(epoch: int) -> int:
            if self.lockstep:
                rng.bit_generator.state = make_rng(self.seed, 1 + index, epoch).bit_generator.state
            return envs.seed_for(self.seed, index, self.envs_per_actor, epoch)

        pace = None
        if self.lockstep:
            pace = Pace(self._updates_per_round(layout), self.checkpoint_unrolls, prepared.version)
        subscriber = ParameterSubscriber(world.comm, learner, size, TAG_PARAMETERS)
        depth = self.stream_depth * self._records(shape)
        return Actor(
            envs.make(self.env, self.envs_per_actor, self.env_options),
            LocalActing(net, subscriber, poller, rng),
            StreamSender(world.comm, learner, shape.record(), depth, TAG_UNROLLS),
            shape,
            poller,
            gamma=self.gamma,
            reward_clip=self.reward_clip,
            rng=rng,
            restart=restart,
            epoch=prepared.restarts,
            pace=pace,
        )

    def _learn(
        self,
        world: World,
        layout: Layout,
        prepared: Prepared,
        net: nets.Network,
        shape: UnrollShape,
        poller: Poller,
        group: Group,
    ) -> bool:
        gpu = layout.ranks[world.rank].gpu
        device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        net.to(device)
        flat = nets.FlatParameters(net)
        counting = Counting(
            self.unroll_length * self.fresh * group.size,
            prepared.spec.action_repeat,
            prepared.version,
            prepared.steps,
        )

        def learning_rate(version: int) -> float:
            return self.learning_rate * max(0.0, 1 - counting.frames(version) / self.total_frames)

        local = LocalUpdating(flat, self.make_optimizer(), learning_rate, self.max_gradient_norm)
        updating: Updating = local
        if group.size > 1:
            updating = AllReduceUpdating(local, group, poller, WIDTH)
        actors = layout.actors_of(world.rank)
        publisher = ParameterPublisher(world.comm, actors, flat.vector.numel(), TAG_PARAMETERS)
        source = self._make_source(world, actors, prepared, shape, poller, publisher, device, group)
        journal = None
        if group.rank == 0:
            journal = self._make_journal(layout, prepared, counting, learning_rate)
        metrics = self._restore(prepared, updating, source, group)
        if journal:
            journal.restore(metrics)
        period = self._updates_per_round(layout) if self.lockstep else 0
        end = counting.version_at(self.total_frames)
        if period:
            end = -(-end // period) * period  # the end of a round
        horizon = Horizon(
            end=end, save_every=period * self.checkpoint_unrolls, publish_every=period
        )
        learner = Learner(
            flat,
            source,
            self.make_loss(net),
            updating,
            publisher,
            poller,
            horizon,
            journal,
            group.gather,
        )
        complete = learner.run()
        if journal:
            complete = complete or journal.out_of_time
            journal.finish(complete)
        return complete

    def _make_source(
        self,
        world: World,
        actors: tuple[int, ...],
        prepared: Prepared,
        shape: UnrollShape,
        poller: Poller,
        publisher: ParameterPublisher,
        device: torch.device,
        group: Group,
    ) -> UnrollQueue:
        records = self._records(shape)
        wide = dataclasses.replace(shape, envs=self.batch_size)
        replay = None
        if self.replay_fraction:
            rng = make_rng(self.seed, 0, group.rank, prepared.restarts)
            replay = UniformReplay(wide, self.replay_capacity, rng)
        return UnrollQueue(
            StreamReceiver(
                world.comm, actors, shape.record(), self.stream_depth * records, TAG_UNROLLS
            ),
            Batch(wide, device),
            shape.envs,
            poller,
            publisher,
            records,
            replay=replay,
            fresh=self.fresh,
            in_turn=(lambda k: actors[k // records % len(actors)]) if self.lockstep else None,
        )

    def _make_journal(
        self,
        layout: Layout,
        prepared: Prepared,
        counting: Counting,
        learning_rate: Callable[[int], float],
    ) -> RunJournal:
        folder = RunFolder(self.path)
        folder.write_layout(layout.table())
        print(layout.table(), flush=True)
        for path, reason in prepared.skipped:
            print(f"passed over {path}: {reason}", file=sys.stderr, flush=True)
        if prepared.checkpoint:
            print(f"going on from {prepared.checkpoint}", flush=True)
        config = self.as_dict()
        for name in ("run_dir", "resume"):  # where and how, not what
            config.pop(name)
        return RunJournal(
            folder,
            config,
            counting,
            total_frames=self.total_frames,
            learning_rate=learning_rate,
            checkpoint_minutes=self.checkpoint_minutes,
            max_minutes=self.max_minutes,
            restarts=prepared.restarts,
            skipped=prepared.skipped,
        )

    def _restore(
        self, prepared: Prepared, updating: Updating, source: UnrollQueue, group: Group
    ) -> dict[str, Any] | None:
        """Goes on from the checkpoint. Returns what the journal needs of it."""
        if prepared.checkpoint is None:
            return None
        state = load(prepared.checkpoint)
        updating.restore(state)
        replay = state.get("replay", {}).get(str(group.rank))
        if self.replay_fraction and replay is None:
            log.info("no replay of learner %d in the checkpoint: it starts empty", group.rank)
        source.restore({"rng": state["rng"]} | ({"replay": replay} if replay else {}))
        return _metrics(state)

    def _records(self, shape: UnrollShape) -> int:
        """Records that one unroll of an actor is sent in."""
        return self.envs_per_actor // shape.envs

    def _updates_per_round(self, layout: Layout) -> int:
        """Updates that one unroll of every actor makes; whole in lock-step."""
        actors = layout.actors_of(layout.learners[0])
        return max(1, len(actors) * self.envs_per_actor // self.fresh)


def _metrics(state: Mapping[str, Any]) -> dict[str, Any]:
    return {**state["metrics"], "time_s": state["session"]["time_s"]}
