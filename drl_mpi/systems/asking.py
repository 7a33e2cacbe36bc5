"""The rank of an actor that asks its learner for every action. Loads no torch."""

from __future__ import annotations

from drl_mpi import envs
from drl_mpi.acting.requests import answer_record, request_record
from drl_mpi.comm.exchange import ExchangeClient
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.world import World
from drl_mpi.roles.asking_actor import AskingActor
from drl_mpi.run.layout import Layout
from drl_mpi.systems.central import Central
from drl_mpi.systems.system import Prepared
from drl_mpi.systems.tags import TAG_REQUESTS

SPIN_S = 2e-3
"""Seconds in which a small network has chosen, see ``Poller.be_brisk``."""


def ask(
    config: Central, world: World, layout: Layout, prepared: Prepared, poller: Poller
) -> AskingActor:
    """The actor, ready to run."""
    place = layout.ranks[world.rank]
    poller.be_brisk(SPIN_S)
    size = config.group_envs

    def seed(group: int, epoch: int) -> int:
        return envs.seed_for(config.seed, place.index, config.envs_per_actor, epoch) + group * size

    return AskingActor(
        [envs.make(config.env, size, config.env_options) for _ in range(config.groups)],
        ExchangeClient(
            world.comm,
            layout.learner_of(world.rank),
            config.groups,
            request_record(prepared.spec, size),
            answer_record(size),
            TAG_REQUESTS,
        ),
        poller,
        seed,
    )
