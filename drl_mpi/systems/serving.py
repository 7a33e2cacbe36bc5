"""A parameter server's rank. Loads no torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from drl_mpi.comm.shards import ShardServer, split
from drl_mpi.roles.server import Server
from drl_mpi.run.layout import Layout
from drl_mpi.systems.served import Served
from drl_mpi.systems.system import Prepared, RankContext
from drl_mpi.systems.tags import TAG_SHARDS
from drl_mpi.updating import kernels
from drl_mpi.updating.shard import Shard

log = logging.getLogger(__name__)


class Serving:
    """A parameter server's rank, ready to run.

    Args:
        config: the system.
        context: of this rank.
    """

    def __init__(self, config: Served, context: RankContext) -> None:
        layout, prepared, poller = context.layout, context.prepared, context.poller
        low, high = split(prepared.size, len(layout.servers))[context.place.index]
        clients = (*layout.learners, *layout.actors)
        log.info(
            "shard %d to %d of %d parameters, %s in %s",
            low, high, prepared.size, config.optimizer, kernels.implementation(),
        )  # fmt: skip
        self._endpoint = ShardServer(context.world.comm, clients, high - low, poller, TAG_SHARDS)
        self._shard = Shard(config.make_shard_optimizer(high - low), config.staleness_limit(layout))
        self._order = service_order(config, layout, prepared) if config.lockstep else None
        self._poller = poller

    def run(self) -> None:
        """Serves until all learners and actors have left."""
        # Made here, since from its making on it counts how long its clients are silent.
        Server(self._endpoint, self._shard, self._poller, self._order).run()


def service_order(config: Served, layout: Layout, prepared: Prepared) -> Iterator[int]:
    """Lock-step: who is served after whom. Everybody asks in the same order in every run.

    At the start and after every checkpoint all learners pull, then all actors. A round is one
    unroll of every actor: learners ask once per update, or once per record while their replays
    fill; then actors ask for the next unroll's parameters.
    """
    learners, actors = layout.learners, layout.actors
    warm_up = 0 if prepared.checkpoint else config.warm_up_unrolls(layout)
    records = config.envs_per_actor // config.record_envs(layout)
    fed = len(config.actors_of(learners[0], layout)) or 1
    filling = fed * records // len(config.learners_of(actors[0], layout)) if actors else records
    updates = config.updates_per_round(layout)
    yield from learners
    yield from actors
    unroll = 0
    while True:
        for _ in range(filling if unroll < warm_up else updates):
            yield from learners
        unroll += 1
        learnt = unroll - warm_up
        if learnt > 0 and learnt % config.checkpoint_unrolls == 0:
            yield from learners
        yield from actors
