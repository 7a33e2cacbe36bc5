"""The rank of an actor that asks its learner for every action. Loads no torch."""

from __future__ import annotations

from drl_mpi import envs
from drl_mpi.acting.requests import answer_record, request_record
from drl_mpi.comm.exchange import ExchangeClient
from drl_mpi.roles.asking_actor import AskingActor
from drl_mpi.systems.central import Central
from drl_mpi.systems.system import RankContext
from drl_mpi.systems.tags import TAG_REQUESTS

SPIN_S = 2e-3
"""Seconds in which a small network has chosen, see ``Poller.be_brisk``."""


def ask(config: Central, context: RankContext) -> AskingActor:
    """The actor, ready to run."""
    world, index, size = context.world, context.place.index, config.group_envs
    context.poller.be_brisk(SPIN_S)

    def seed(group: int, epoch: int) -> int:
        return envs.seed_for(config.seed, index, config.envs_per_actor, epoch) + group * size

    return AskingActor(
        [envs.make(config.env, size, config.env_options) for _ in range(config.groups)],
        ExchangeClient(
            world.comm,
            context.layout.learner_of(world.rank),
            config.groups,
            request_record(context.prepared.spec, size),
            answer_record(size),
            TAG_REQUESTS,
        ),
        context.poller,
        seed,
    )
