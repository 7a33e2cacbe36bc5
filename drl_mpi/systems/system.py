"""What all systems share: a config that checks itself, and plays each rank's role.

Nothing here loads torch. A parameter server's rank stops at `serving`, that of an actor without a
network at `asking`: neither needs it. Other actors and learners go on to `actor_builder` and
`learner_builder`, which put the rooms together as the system chooses them.
"""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from drl_mpi.comm.poller import SILENCE_S, Poller
from drl_mpi.comm.world import Group, World
from drl_mpi.errors import EXIT_OK, EXIT_STOPPED, UsageError
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.gpus import visible_gpus
from drl_mpi.run.launcher import STOP_SIGNALS
from drl_mpi.run.layout import Layout, Placement, Role
from drl_mpi.systems.config import RunConfig
from drl_mpi.updating.shard_optimizers import make_shard_optimizer

if TYPE_CHECKING:
    from drl_mpi.acting.choosing import Choose
    from drl_mpi.acting.parameters import Parameters
    from drl_mpi.envs import EnvSpec
    from drl_mpi.experience.source import Source
    from drl_mpi.nets import FlatParameters, Network
    from drl_mpi.roles.loss import Loss
    from drl_mpi.systems.actor_builder import ActorBuilder
    from drl_mpi.systems.builder import Builder
    from drl_mpi.systems.learner_builder import LearnerBuilder
    from drl_mpi.systems.supply import Supply
    from drl_mpi.updating.optimizers import Adam, RMSProp
    from drl_mpi.updating.protocol import Updating

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What rank 0 found out before the start, for all ranks."""

    spec: EnvSpec
    size: int
    """Parameters of the network."""
    checkpoint: Path | None = None
    """Where to go on from."""
    rounds: int = 0
    """Updates that every learner made so far (lock-step)."""
    steps: int = 0
    restarts: int = 0
    """Checkpoints that the run went on from so far: each start draws other environment seeds."""
    rngs: dict[int, npt.NDArray[np.uint64]] | None = None
    """Rank -> state of its action RNG."""
    skipped: tuple[tuple[Path, str], ...] = ()
    """Newer checkpoints that are damaged, and why."""


@dataclass(frozen=True)
class RankContext:
    """What a rank's role is put together with, besides the system's config."""

    world: World
    layout: Layout
    prepared: Prepared
    poller: Poller

    @property
    def place(self) -> Placement:
        """This rank's own in the layout."""
        return self.layout.ranks[self.world.rank]


class Ready(Protocol):
    """A rank's role with all that is slow behind it: it waits only for the other ranks."""

    def run(self) -> bool | None:
        """Plays it to the end. A learner returns whether the run is complete."""
        ...


@dataclass(frozen=True, kw_only=True)
class System(RunConfig):
    """A point of the design space: subclasses make the four choices and state the settings."""

    # Declared here, since these rooms read them; each system sets defaults and names its source.
    unroll_length: int
    gamma: float
    reward_clip: float
    learning_rate: float
    max_gradient_norm: float
    optimizer: str
    decay: float
    epsilon: float

    # -- the four choices -----------------------------------------------------------------------

    def choose(self, builder: Builder) -> Choose:
        """How actions are chosen from the network's output."""
        raise NotImplementedError

    def make_source(self, builder: LearnerBuilder) -> Source[Any]:
        """Where a learner's batches come from."""
        raise NotImplementedError

    def make_updating(self, builder: LearnerBuilder) -> Updating:
        """Where gradients are applied."""
        raise NotImplementedError

    def make_loss(self, net: Network, flat: FlatParameters) -> Loss[Any]:
        """What is minimised, by a network whose parameters are ``flat``."""
        raise NotImplementedError

    # -- what follows from them -----------------------------------------------------------------

    def make_parameters(self, builder: ActorBuilder) -> Parameters:
        """Where an actor with a network gets its parameters from."""
        return builder.subscribe()

    def make_supply(self, builder: LearnerBuilder) -> Supply:
        """Where a learner's unrolls come from."""
        from drl_mpi.systems.supply import LocalSupply

        return LocalSupply(builder)

    def make_server(self, context: RankContext) -> Ready:
        """A parameter server's rank. See ``Served``.

        Raises:
            NotImplementedError: for a system without parameter servers.
        """
        raise NotImplementedError(
            f"{self.name} has no parameter servers, but rank {context.world.rank} should be one: "
            "extend Served, or ask for none in wanted()"
        )

    def make_actor(self, context: RankContext) -> Ready:
        """An actor's rank."""
        from drl_mpi.systems.actor_builder import ActorBuilder

        return ActorBuilder(self, context).actor()

    def make_learner(self, context: RankContext, group: Group) -> Ready:
        """A learner's rank. Collective over the learners, ``group``."""
        from drl_mpi.systems.learner_builder import LearnerBuilder
        from drl_mpi.systems.learning import Learning

        return Learning(LearnerBuilder(self, context, group))

    @property
    def head(self) -> str:
        """Of the network: see ``nets.make``."""
        return "policy_value"

    @property
    def annealed(self) -> bool:
        """Whether the learning rate falls linearly to 0 at ``total_frames``."""
        return True

    @property
    def served(self) -> bool:
        """Whether parameter servers own the parameters."""
        return False

    @property
    def central(self) -> bool:
        """Whether learners choose the actions of actors that hold no network."""
        return False

    def wanted(self, ranks: int | None) -> dict[str, int | None]:  # noqa: ARG002
        """See ``run.job.Job.wanted``."""
        return {"learners": self.learners, "servers": None, "actors": self.actors}

    def learners_of(self, actor: int, layout: Layout) -> tuple[int, ...]:
        """Ranks that an actor's unrolls go to, each an equal share of its environments."""
        return (layout.learner_of(actor),)

    def actors_of(self, learner: int, layout: Layout) -> tuple[int, ...]:
        """Ranks whose unrolls come to a learner; none if it acts for itself."""
        return layout.actors_of(learner)

    def record_envs(self, layout: Layout) -> int:
        """Environments per record of an unroll: a divisor of ``envs_per_actor``."""
        raise NotImplementedError(
            f"{self.name} does not say how many environments a record of an unroll holds: define "
            "record_envs(); envs_per_actor is right unless batches or learners cut them"
        )

    def updates_per_round(self, layout: Layout) -> int:
        """Updates that one unroll of every actor makes; whole in lock-step."""
        raise NotImplementedError(
            f"{self.name} does not say how many updates a round makes: define updates_per_round()"
        )

    def warm_up_unrolls(self, layout: Layout) -> int:  # noqa: ARG002
        """Unrolls of every actor before the first update; whole in lock-step."""
        return 0

    def optimizer_settings(self) -> dict[str, float]:
        """Of the optimiser by its name, wherever gradients are applied."""
        decay = {"decay": self.decay} if "rmsprop" in self.optimizer else {}
        return {"eps": self.epsilon, **decay}

    def make_optimizer(self) -> Adam | RMSProp:
        """Of a learner that applies its gradients itself."""
        from drl_mpi.updating.optimizers import make_optimizer

        return make_optimizer(self.optimizer, **self.optimizer_settings())

    def optimizer_slots(self) -> set[str]:
        """Names of what the optimiser keeps per parameter.

        Raises:
            ValueError: for an optimiser whose settings cannot work.
        """
        # A server's optimisers keep and refuse the same as a learner's, and load no torch.
        return set(make_shard_optimizer(self.optimizer, 1, **self.optimizer_settings()).slots())

    def replay_size(self) -> int:
        """Entries of a learner's replay, as the user gave them; 0 without one."""
        return 0

    def memory_bytes(self, spec: EnvSpec, layout: Layout, learner: int) -> int:  # noqa: ARG002
        """What a learner will hold beyond its network."""
        return 0

    def gauges(self, version: int, frames: int) -> dict[str, float]:  # noqa: ARG002
        """Numbers to log after so many updates and frames."""
        return {}

    # -- before the start -----------------------------------------------------------------------

    def check(self) -> None:
        """See ``RunConfig.check``."""
        super().check()
        for name, low, high in (
            ("unroll_length", 1, 10_000),
            ("gamma", 0.0, 1.0),
            ("reward_clip", 0.0, 1e9),
            ("learning_rate", 0.0, 1e3),
            ("max_gradient_norm", 1e-9, 1e9),
        ):
            self._within(name, low, high)
        try:
            self.optimizer_slots()
        except ValueError as error:
            raise UsageError(f"the optimiser's settings cannot work: {error}") from error

    @property
    def patience_s(self) -> float:
        """See ``run.job.Job.patience_s``."""
        return max(self.silence_timeout, SILENCE_S)

    @property
    def uses_gpus(self) -> bool:
        """See ``run.job.Job.uses_gpus``."""
        return self.device != "cpu"

    def gpus(self) -> int:
        """See ``run.job.Job.gpus``."""
        return visible_gpus() if self.uses_gpus else 0

    def check_gpus(self, found: int) -> None:
        """See ``run.job.Job.check_gpus``."""
        if self.device == "cuda" and not found:
            raise UsageError(
                "--device cuda, but torch sees no GPU here; use --device cpu, or install a torch "
                "built for CUDA and ask the scheduler for GPUs"
            )

    def check_layout(self, layout: Layout) -> None:
        """See ``run.job.Job.check_layout``."""
        fed = {len(self.actors_of(rank, layout)) for rank in layout.learners}
        if self.lockstep and len(fed) > 1:
            raise UsageError(
                f"--lockstep: {len(layout.actors)} actors do not spread evenly over "
                f"{len(layout.learners)} learners; make --actors a multiple of --learners"
            )

    def check_env(self, spec: EnvSpec, layout: Layout) -> None:
        """Refuses what cannot work with this environment. Raises UsageError."""

    def inspect(self, layout: Layout) -> Prepared | None:
        """See ``run.job.Job.inspect``."""
        from drl_mpi.systems.inspection import inspect

        return inspect(self, layout)

    def claim(self, *, clear_stop: bool) -> None:
        """See ``run.job.Job.claim``."""
        from drl_mpi.run.checkpoint_parts import remove_orphans

        folder = RunFolder(self.path)
        folder.prepare()
        folder.lock()
        if clear_stop:
            folder.clear_stop()
        folder.clear_done()
        remove_orphans(folder.checkpoints)
        folder.write_config(self.as_dict())

    # -- on the ranks ---------------------------------------------------------------------------

    def play(self, world: World, layout: Layout, prepared: Prepared) -> int:
        """See ``run.job.Job.play``. Collective."""
        poller = Poller(self.silence_timeout)
        context = RankContext(world, layout, prepared, poller)
        place, group = context.place, world.group(layout.learners)
        log.info("%s %d on %s, %d threads", place.role, place.index, place.host, place.threads)
        if group is None or group.rank:
            # Only the first learner listens to signals; the others end when it says so.
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        if place.gpu is None:  # a library that looks at a GPU takes some of its memory
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        ready: Ready
        if group is not None:
            ready = self.make_learner(context, group)
        elif place.role is Role.SERVER:
            ready = self.make_server(context)
        else:
            yield_cores(layout, place)  # first, since threads keep the niceness they start with
            ready = self.make_actor(context)
        world.meet(patient(self), "the other ranks to load")
        complete = bool(ready.run())
        complete = world.share_flag(complete, poller, "the first learner to finish")
        # MPI's own leave would wait for ever.
        world.meet(patient(self), "the other ranks to finish")
        log.info("%s", "finished" if complete else "stopped early")
        return EXIT_OK if complete else EXIT_STOPPED


def patient(config: System) -> Poller:
    """Waits for ranks that load: seconds, or minutes from a slow disk. That is no silence."""
    return Poller(config.patience_s)


ACTOR_NICENESS = 10
"""As much as keeps a learner's thread on its core: with 5 it lost an eighth of its time to actors
that woke there while another core was idle. More would not help, and starve actors beside others'
jobs."""


def yield_cores(layout: Layout, place: Placement) -> None:
    """Where ranks share cores, learners go first: else unrolls queue up and grow old."""
    if place.cores is not None and layout.ranks_on(place.host) > place.cores:
        os.nice(ACTOR_NICENESS)


def stored(config: System) -> dict[str, Any]:
    """The config as a checkpoint has it: what runs, not where and how."""
    fields = config.as_dict()
    for name in ("run_dir", "resume"):
        fields.pop(name)
    return fields
