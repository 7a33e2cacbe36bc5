"""What systems share whose learners choose the actions of their actors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal

from drl_mpi.errors import UsageError
from drl_mpi.run.layout import Layout
from drl_mpi.systems.system import System

if TYPE_CHECKING:
    from drl_mpi.acting.tuner import Setting
    from drl_mpi.systems.learner_builder import LearnerBuilder
    from drl_mpi.systems.supply import Supply
    from drl_mpi.systems.system import RankContext, Ready

COLUMNS = (
    "pps",
    "tps",
    "predict_batch_mean",
    "predict_batch_p10",
    "predict_batch_p90",
    "request_wait_ms_p50",
    "request_wait_ms_p99",
    "unroll_lag_mean",
    "unroll_lag_max",
    "predictors",
    "trainers",
    "active_actors",
    "settled",
)
"""Of progress.csv: predictions/s, training batches/s, environments per prediction, milliseconds
from a request's arrival to its answer, versions between the first and the last action of an unroll,
the present setting, and whether the tuner is content with it."""


@dataclass(frozen=True, kw_only=True)
class Central(System):
    """Options of central acting."""

    groups: int = 2
    """Central acting: groups that an actor's environments are cut into; one steps while another
    waits for its actions (Espeholt et al. 2020, section 3.1, has as many as hide the latency)."""
    predictors: int = 1
    """Central acting: threads that choose actions, at the start (Babaeizadeh et al. 2017: 2)."""
    trainers: int = 1
    """Central acting: threads that make gradients, at the start (Babaeizadeh et al. 2017: 2)."""
    max_predictors: int = 4
    """Central acting: how many the tuner may try."""
    max_trainers: int = 4
    """Central acting: how many the tuner may try. Each has a network and a batch of its own."""
    predict_batch: int = 128
    """Central acting: environments per prediction, at most (Babaeizadeh et al. 2017: 128)."""
    predict_wait: float = 0.0
    """Central acting: milliseconds that a prediction waits for more requests while fewer are
    there than it could take."""
    tune: Literal["auto", "on", "off"] = "auto"
    """Central acting: find the numbers of predictors, trainers and actors at work by trying; "off"
    keeps them. "auto" tunes if there is one learner and no lock-step."""

    CENTRAL_MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {
            "groups",
            "predictors",
            "trainers",
            "max_predictors",
            "max_trainers",
            "predict_batch",
            "predict_wait",
            "tune",
        }
    )
    MAY_CHANGE = System.MAY_CHANGE | CENTRAL_MAY_CHANGE

    @property
    def group_envs(self) -> int:
        """Environments of a group."""
        return self.envs_per_actor // self.groups

    def tuned(self, layout: Layout) -> bool:
        """Whether the numbers of threads and actors are to be found by trying."""
        free = not self.lockstep and len(layout.learners) == 1
        return self.tune == "on" or (self.tune == "auto" and free)

    def most(self, actors: int) -> Setting:
        """The largest setting that may be tried, with so many actors."""
        from drl_mpi.acting.tuner import Setting

        return Setting(
            max(self.max_predictors, self.predictors), max(self.max_trainers, self.trainers), actors
        )

    def make_actor(self, context: RankContext) -> Ready:
        """With central acting, one without a network."""
        if not self.central:
            return super().make_actor(context)
        from drl_mpi.systems.asking import ask

        return ask(self, context)

    def make_supply(self, builder: LearnerBuilder) -> Supply:
        """With central acting, lanes that this learner fills itself."""
        if not self.central:
            return super().make_supply(builder)
        from drl_mpi.systems.service import Service

        return Service(self, builder)

    def check(self) -> None:
        """See ``RunConfig.check``."""
        super().check()
        if not self.central:
            self._refuse_central()
            return
        for name, low, high in (
            ("groups", 1, 64),
            ("predictors", 1, 256),
            ("trainers", 1, 256),
            ("max_predictors", 1, 256),
            ("max_trainers", 1, 256),
            ("predict_batch", 1, 1_000_000),
            ("predict_wait", 0.0, 1000.0),
        ):
            self._within(name, low, high)
        if self.envs_per_actor % self.groups:
            raise UsageError(
                f"--envs-per-actor {self.envs_per_actor} cannot be cut into --groups {self.groups} "
                "of equal size; change either"
            )
        if self.predict_wait / 1000 > self.silence_timeout / 2:
            raise UsageError(
                f"--predict-wait {self.predict_wait} ms is more than half of --silence-timeout "
                f"{self.silence_timeout} s: actors would give the learner up; change either"
            )
        if self.lockstep and (self.predictors > 1 or self.trainers > 1 or self.tune == "on"):
            raise UsageError(
                f"--lockstep with --predictors {self.predictors}, --trainers {self.trainers} and "
                f"--tune {self.tune}: central acting in lock-step has one predictor and one "
                "trainer; use --predictors 1 --trainers 1 --tune off"
            )

    def _refuse_central(self) -> None:
        """Options that would do nothing."""
        usual = {field.name: field.default for field in fields(Central)}
        for name in sorted(self.CENTRAL_MAY_CHANGE):
            if getattr(self, name) != usual[name]:
                raise UsageError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is for --acting central; "
                    "add that, or leave this out"
                )

    def check_layout(self, layout: Layout) -> None:
        """See ``run.job.Job.check_layout``."""
        super().check_layout(layout)
        if self.central and len(layout.learners) > 1:
            if self.tune == "on":
                raise UsageError(
                    f"--tune on with {len(layout.learners)} learners: they wait for one another, "
                    "so none can tell what its own numbers are worth; use --tune off"
                )
            if self.trainers > 1:
                raise UsageError(
                    f"--trainers {self.trainers} with {len(layout.learners)} learners: these "
                    "update together, from one batch each; use --trainers 1"
                )
