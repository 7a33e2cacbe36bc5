"""Puts together what a learner needs that chooses its actors' actions."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from drl_mpi.acting.central import CentralActing
from drl_mpi.acting.lanes import Lane
from drl_mpi.acting.predictors import Predictor, Predictors
from drl_mpi.acting.requests import answer_record, request_record
from drl_mpi.acting.tuner import Setting, Tuner
from drl_mpi.acting.versions import Versions
from drl_mpi.comm.exchange import ExchangeServer
from drl_mpi.comm.parameters import Publisher
from drl_mpi.comm.poller import Bell
from drl_mpi.comm.stream import Receiver
from drl_mpi.experience.queue import UnrollQueue
from drl_mpi.experience.rng import make_rng
from drl_mpi.experience.source import Source
from drl_mpi.nets import FlatParameters
from drl_mpi.roles.loss import Loss
from drl_mpi.roles.training import TrainerThreads
from drl_mpi.run.progress import number, rate
from drl_mpi.systems.central import COLUMNS, Central
from drl_mpi.systems.network import make_net
from drl_mpi.systems.tags import TAG_REQUESTS

if TYPE_CHECKING:
    from drl_mpi.systems.learner_builder import LearnerBuilder

log = logging.getLogger(__name__)

SWITCH_S = 5e-4
"""Seconds after which a thread may ask another one for Python's lock: the one that talks MPI must
not wait for longer (Python's default is 5 ms)."""
PAUSE_S = 0.5
"""Seconds without a poll that are no measurement."""
PREDICTORS = 1 << 20
"""Tells the predictors' generators from all others of the same seed."""


class Service:
    """Predictors, trainers, and what balances them: a ``Supply``.

    Args:
        config: of the system.
        builder: of this learner's rank.
    """

    columns: tuple[str, ...] = COLUMNS
    by_rounds = False

    def __init__(self, config: Central, builder: LearnerBuilder) -> None:
        self._config = config
        self._builder = builder
        sys.setswitchinterval(SWITCH_S)
        bell = self._bell = Bell()
        builder.poller.sleep = bell.sleep
        builder.poller.be_brisk()
        self._versions = Versions(builder.device)
        actors, tuned = len(builder.sources), config.tuned(builder.layout)
        start = self._setting = Setting(config.predictors, config.trainers, actors)
        most = config.most(actors) if tuned else start
        self.trainers = most.trainers
        self._tuner = Tuner(start, most) if tuned else None
        self._clock = time.monotonic
        self._since = self._balanced_at = self._clock()
        self._done = self._noted = 0
        restarts = builder.prepared.restarts
        self._rngs = [self._rng(number, restarts) for number in range(most.predictors)]
        self._predictors = Predictors(
            self._predictor,
            most.predictors,
            config.predict_batch,
            config.predict_wait / 1000.0,
            1,
            bell.ring,
        )
        spec, size = builder.prepared.spec, config.group_envs
        lanes = [
            Lane(
                source,
                channel,
                builder.shape,
                size,
                config.stream_depth,
                gamma=config.gamma,
                reward_clip=config.reward_clip,
            )
            for source in builder.sources
            for channel in range(config.groups)
        ]
        self._acting = CentralActing(
            ExchangeServer(
                builder.world.comm,
                builder.sources,
                config.groups,
                request_record(spec, size),
                answer_record(size),
                TAG_REQUESTS,
            ),
            lanes,
            self._predictors,
            self._versions,
            config.stream_depth,
            builder.poller.silence_s,
            epoch=restarts,
            order=builder.pace,
            restarted=self._restarted,
            meanwhile=self._balance,
        )
        self.publisher: Publisher = self._acting
        self._training: TrainerThreads[Any] | None = None
        self._set(start)

    @property
    def _trained(self) -> int:
        return self._training.trained if self._training else 0

    def _tps(self) -> float:
        """Training batches per second since the last row of progress."""
        return (self._trained - self._done) / max(self._clock() - self._since, 1e-9)

    def receiver(self) -> Receiver:
        """See ``Supply``: lanes are where unrolls are written."""
        return self._acting

    def training(self, source: Source[Any], loss: Loss[Any]) -> TrainerThreads[Any]:
        """Trainers, each with a network and a loss of its own.

        Args:
            source: of the batches; must be an ``UnrollQueue``.
            loss: the learner's, which no trainer uses; must be one that remembers nothing.

        Raises:
            TypeError: for others.
        """
        if not isinstance(source, UnrollQueue):
            raise TypeError(
                f"make_source made a {type(source).__name__}, whose batches must be waited for; "
                "central acting has several at a time and waits for none: use builder.queue()"
            )
        if loss.state():
            raise TypeError(
                f"make_loss made a {type(loss).__name__}, which remembers {sorted(loss.state())}; "
                "with central acting every trainer has a loss of its own, which no checkpoint "
                "has: use a PureLoss"
            )
        self._training = TrainerThreads(
            source,
            self._trainer,
            self._versions,
            lambda trainers: max(1, self._builder.place.threads // trainers),
            self._builder.poller,
            self._bell.ring,
        )
        self._training.active = self._setting.trainers
        return self._training

    def _predictor(self, number: int) -> Predictor:
        builder = self._builder
        choose = self._config.choose(builder)
        return Predictor(builder.net, self._versions, choose, self._rngs[number])

    def _trainer(self) -> tuple[FlatParameters, Loss[Any]]:
        net = make_net(self._config, self._builder.prepared.spec).to(self._builder.device)
        flat = FlatParameters(net)
        return flat, self._config.make_loss(net, flat)

    def _rng(self, number: int, epoch: int) -> np.random.Generator:
        return make_rng(self._config.seed, PREDICTORS, self._builder.group.rank, number, epoch)

    def _restarted(self, epoch: int) -> None:
        """Lock-step: environments begin anew, and so does what chooses their actions."""
        for index, rng in enumerate(self._rngs):
            rng.bit_generator.state = self._rng(index, epoch).bit_generator.state

    def _balance(self) -> None:
        """Called at every poll: follows the tuner."""
        tuner, now = self._tuner, self._clock()
        if tuner is None:
            return
        if now - self._balanced_at > PAUSE_S:
            tuner.discard()  # a checkpoint was written, or the like
        self._balanced_at = now
        if tuner.update(self._builder.updating.steps):
            self._set(tuner.setting)
        if len(tuner.history) > self._noted:
            self._noted = len(tuner.history)
            log.info("tuner: %s", tuner.said)

    def _set(self, setting: Setting) -> None:
        self._setting = setting
        self._predictors.active = setting.predictors
        self._acting.active = setting.actors
        if self._training:
            self._training.active = setting.trainers

    def gauges(self) -> dict[str, float]:
        """Numbers to log: training batches per second, the setting, whether it is settled."""
        tps, setting = self._tps(), self._setting
        self._since, self._done = self._clock(), self._trained
        return {
            "tps": tps,
            "predictors": setting.predictors,
            "trainers": setting.trainers,
            "active_actors": min(setting.actors, self._well),
            "settled": float(self._tuner is None or self._tuner.settled),
        }

    def status(self) -> str:
        """The service in a few words, for the live display."""
        shown = self._acting.meters.look()
        setting = self._setting
        lost = f" ({len(self._acting.faults)} left alone)" if self._acting.faults else ""
        said = self._tuner.said if self._tuner else "off"
        return (
            f"PPS {rate(shown['pps'])} TPS {rate(self._tps())}"
            f" batch {number(shown['predict_batch_mean'], 0)}"
            f" ({number(shown['predict_batch_p10'], 0)}-{number(shown['predict_batch_p90'], 0)})"
            f" answers {number(shown['request_wait_ms_p50'])} ms"
            f" (99% {number(shown['request_wait_ms_p99'], 0)})"
            f"  P{setting.predictors} T{setting.trainers}"
            f" A{min(setting.actors, self._well)}/{len(self._acting.sources)}{lost}"
            f"  tuner: {said}"
        )

    @property
    def _well(self) -> int:
        return len(self._acting.sources) - len(self._acting.faults)
