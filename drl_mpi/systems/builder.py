"""What actors' and learners' ranks are put together from: the parts that both have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from drl_mpi import envs, nets
from drl_mpi.acting.local import Acting
from drl_mpi.experience.rng import make_rng, unpack_rng
from drl_mpi.experience.unroll import UnrollShape
from drl_mpi.nets.threads import use_threads
from drl_mpi.roles.unroller import Pace, Unroller
from drl_mpi.systems.network import make_net
from drl_mpi.systems.system import RankContext, System


class Builder:
    """One rank's rooms.

    Args:
        config: the system.
        context: of this rank.
    """

    def __init__(self, config: System, context: RankContext) -> None:
        self.config = config
        self.world = context.world
        self.layout = context.layout
        self.prepared = context.prepared
        self.poller = context.poller
        self.place = context.place
        use_threads(self.place.threads)
        nets.keep_freed_memory()
        self.net = make_net(config, self.prepared.spec)
        self.shape = UnrollShape(
            self.prepared.spec,
            config.unroll_length,
            config.record_envs(self.layout),
            self.net.state_shape,
        )

    @property
    def acting_index(self) -> int:
        """This rank's number among those with environments."""
        return self.place.index

    @property
    def acting_ranks(self) -> int:
        """Ranks with environments."""
        return len(self.layout.actors) or len(self.layout.learners)

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

    def acting_rng(self) -> np.random.Generator:
        """What actions are drawn with, as of the checkpoint if there is one."""
        rng = make_rng(self.config.seed, 1 + self.acting_index, self.prepared.restarts)
        stored = (self.prepared.rngs or {}).get(self.world.rank)
        if stored is not None:
            unpack_rng(rng, stored)
        return rng

    def unroller(
        self, acting: Acting, rng: np.random.Generator, progress: Callable[[], object]
    ) -> Unroller:
        """Plays this rank's environments.

        Args:
            acting: chooses actions.
            rng: with which it draws them.
            progress: called between steps.
        """
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
