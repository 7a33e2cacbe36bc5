"""Where a learner's unrolls come from, and what those who make them need of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from drl_mpi.acting.local import SharedActing
from drl_mpi.comm.parameters import ParameterPublisher, Publisher
from drl_mpi.comm.stream import Receiver, StreamReceiver
from drl_mpi.experience.source import Source
from drl_mpi.roles.bundle import OwnUnrolls
from drl_mpi.roles.loss import Loss
from drl_mpi.roles.training import OwnTraining, Training
from drl_mpi.systems.tags import TAG_PARAMETERS, TAG_UNROLLS

if TYPE_CHECKING:
    from drl_mpi.systems.learner_builder import LearnerBuilder


class Supply(Protocol):
    """What differs between actors with a network, this rank's own environments, and actors whose
    actions are chosen here (``service.Service``)."""

    publisher: Publisher
    trainers: int
    """Batches that may be trained on at once, at most."""
    columns: tuple[str, ...]
    """Of progress.csv, for its gauges."""
    by_rounds: bool
    """Whether actors in lock-step get a version per round; else they get every version."""

    def receiver(self) -> Receiver:
        """What brings the unrolls."""
        ...

    def training(self, source: Source[Any], loss: Loss[Any]) -> Training[Any]:
        """What makes gradients.

        Args:
            source: of the batches.
            loss: what is minimised, by the learner's own network; a checkpoint has its state.
        """
        ...

    def gauges(self) -> dict[str, float]:
        """Numbers to log, since the last call."""
        ...

    def status(self) -> str:
        """A few words for the live display."""
        ...


class LocalSupply:
    """Unrolls of ranks with a network: actors', or this learner's own.

    Args:
        builder: of this learner's rank.
    """

    trainers = 1
    columns: tuple[str, ...] = ()
    by_rounds = True

    def __init__(self, builder: LearnerBuilder) -> None:
        self._builder = builder
        world, layout = builder.world, builder.layout
        subscribers = () if builder.config.served else layout.published_by(world.rank)
        self.publisher: Publisher = ParameterPublisher(
            world.comm, subscribers, builder.prepared.size, TAG_PARAMETERS
        )

    def receiver(self) -> Receiver:
        """See ``Supply``."""
        builder, config = self._builder, self._builder.config
        if builder.layout.actors:
            return StreamReceiver(
                builder.world.comm,
                builder.sources,
                builder.shape.record(),
                config.stream_depth * builder.records,
                TAG_UNROLLS,
            )
        rng = builder.acting_rng()
        acting = SharedActing(builder.net, builder.updating, config.choose(builder), rng)
        unroller = builder.unroller(acting, rng, lambda: None)
        return OwnUnrolls(unroller, builder.shape, builder.world.rank, rng)

    def training(self, source: Source[Any], loss: Loss[Any]) -> Training[Any]:
        """In the learner's own thread."""
        builder = self._builder
        return OwnTraining(builder.flat, source, loss, builder.updating, builder.poller)

    def gauges(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def status(self) -> str:
        """Nothing."""
        return ""
