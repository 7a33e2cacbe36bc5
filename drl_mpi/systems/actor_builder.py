"""Puts together an actor that chooses its actions itself."""

from __future__ import annotations

import numpy as np

from drl_mpi.acting.local import LocalActing
from drl_mpi.acting.parameters import Parameters, PulledParameters
from drl_mpi.comm.parameters import ParameterSubscriber
from drl_mpi.comm.relay import RelayingSubscriber
from drl_mpi.comm.shards import ShardClient
from drl_mpi.comm.stream import Sender, SpreadSender, StreamSender
from drl_mpi.roles.actor import Actor
from drl_mpi.systems.builder import Builder
from drl_mpi.systems.served import Served
from drl_mpi.systems.tags import TAG_PARAMETERS, TAG_SHARDS, TAG_UNROLLS
from drl_mpi.updating.servers import is_last


class ActorBuilder(Builder):
    """An actor's rank."""

    def actor(self) -> Actor:
        """The actor, ready to run."""
        rng = self.acting_rng()
        parameters, sender = self.config.make_parameters(self), self._sender()
        acting = LocalActing(self.net, parameters, self.poller, self.config.choose(self), rng)

        def progress() -> None:
            sender.progress()
            parameters.progress()

        return Actor(self.unroller(acting, rng, progress), sender, self.poller, rng)

    def subscribe(self) -> Parameters:
        """Parameters as a learner publishes them, itself or by another actor of this host."""
        comm, rank, size = self.world.comm, self.world.rank, self.prepared.size
        publisher, followers = self.layout.publisher_to(rank), self.layout.published_by(rank)
        if not followers:
            return ParameterSubscriber(comm, publisher, size, TAG_PARAMETERS)
        return RelayingSubscriber(comm, publisher, followers, size, TAG_PARAMETERS, self.poller)

    def pull(self, config: Served) -> Parameters:
        """Parameters as the servers have them."""
        vector = np.zeros(self.prepared.size, dtype=np.float32)
        servers = self.layout.servers
        return PulledParameters(
            ShardClient(self.world.comm, servers, vector, None, TAG_SHARDS),
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
