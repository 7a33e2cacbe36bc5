"""GA3C: A3C with central inference (Babaeizadeh et al. 2017, arXiv 1611.06256).

actions: central, batched on the learner's device | experience: queue | gradients: local | loss:
n-step actor-critic
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from drl_mpi.errors import UsageError
from drl_mpi.run.layout import Layout
from drl_mpi.systems.central import Central

if TYPE_CHECKING:
    from drl_mpi.acting.choosing import Choose
    from drl_mpi.experience.source import Source
    from drl_mpi.nets import FlatParameters, Network
    from drl_mpi.roles.loss import Loss
    from drl_mpi.systems.builder import Builder
    from drl_mpi.systems.learner_builder import LearnerBuilder
    from drl_mpi.updating.protocol import Updating


@dataclass(frozen=True, kw_only=True)
class GA3C(Central):
    """GA3C: actors without a network; the learner's predictors act for them, its trainers learn.

    The defaults are for a small machine and are ours: measured on Pong, see docs/benchmarks.md.
    ``--preset paper`` has the settings of Babaeizadeh et al. 2017.
    """

    unroll_length: int = 20
    """Steps per update and environment, t_max (Babaeizadeh et al. 2017: 5, with which Pong had not
    begun to be learned after 5M frames)."""
    envs_per_actor: int = 16
    """Environments of each actor (ours; the paper's agents have one)."""
    batch_size: int = 4
    """Unrolls of single environments per update (ours; the authors' code takes what is there)."""
    gamma: float = 0.99
    """Discount per step (Babaeizadeh et al. 2017: 0.99)."""
    reward_clip: float = 1.0
    """Rewards are clipped to [-c, c] for learning; 0 leaves them as they are (Babaeizadeh et al.
    2017: 1)."""
    baseline_cost: float = 0.5
    """Weight of the value loss 0.5 (R - V)^2 (Babaeizadeh et al. 2017: 1; ours is A3C's)."""
    entropy_cost: float = 0.01
    """Weight of the entropy bonus (Babaeizadeh et al. 2017: 0.01)."""
    min_probability: float = 1e-6
    """Logarithms are of at least this probability (Babaeizadeh et al. 2017, section 3.3: 1e-6)."""
    optimizer: Literal["rmsprop", "adam"] = "adam"
    """Optimiser (Babaeizadeh et al. 2017: rmsprop)."""
    learning_rate: float = 4e-4
    """At the start (Babaeizadeh et al. 2017: 3e-4 with rmsprop)."""
    anneal: bool = True
    """Lower the learning rate linearly to 0 at ``total_frames`` (the authors' code does not)."""
    decay: float = 0.99
    """RMSProp: decay of the squared gradient's average (Babaeizadeh et al. 2017: 0.99)."""
    epsilon: float = 1e-5
    """Optimiser's epsilon: inside the root for rmsprop (Babaeizadeh et al. 2017: 0.1), outside for
    adam."""
    max_gradient_norm: float = 40.0
    """Gradients are clipped to this global norm (ours; in the paper they are not clipped)."""

    name: ClassVar[str] = "ga3c"
    columns: ClassVar[tuple[str, ...]] = ("policy_loss", "value_loss", "entropy")
    central: ClassVar[bool] = True

    @property
    def annealed(self) -> bool:
        """See ``System.annealed``."""
        return self.anneal

    # -- the four choices -----------------------------------------------------------------------

    def choose(self, builder: Builder) -> Choose:  # noqa: ARG002 (all actors alike)
        """Samples from the policy."""
        from drl_mpi.acting.choosing import choose_by_softmax

        return choose_by_softmax

    def make_source(self, builder: LearnerBuilder) -> Source[Any]:
        """A queue."""
        return builder.queue(self.batch_size)

    def make_updating(self, builder: LearnerBuilder) -> Updating:
        """Local."""
        return builder.update_locally(self.make_optimizer())

    def make_loss(self, net: Network, flat: FlatParameters) -> Loss[Any]:  # noqa: ARG002
        """N-step actor-critic, with the guard of its logarithms."""
        from drl_mpi.systems.actor_critic_loss import ActorCriticLoss

        return ActorCriticLoss(net, self.baseline_cost, self.entropy_cost, self.min_probability)

    # -- what follows from them -----------------------------------------------------------------

    def record_envs(self, layout: Layout) -> int:  # noqa: ARG002
        """See ``System.record_envs``."""
        return gcd(self.group_envs, self.batch_size)

    def updates_per_round(self, layout: Layout) -> int:
        """See ``System.updates_per_round``."""
        return max(1, len(layout.actors) * self.envs_per_actor // self.batch_size)

    def check(self) -> None:
        """See ``RunConfig.check``."""
        super().check()
        for name, low, high in (
            ("batch_size", 1, 1_000_000),
            ("baseline_cost", 0.0, 1e6),
            ("entropy_cost", 0.0, 1e6),
            ("min_probability", 0.0, 0.1),
        ):
            self._within(name, low, high)
        if self.learners not in (None, 1):
            raise UsageError(
                f"--learners {self.learners}: GA3C has one; for more use jobs/impala.py "
                "--acting central"
            )

    def wanted(self, ranks: int | None) -> dict[str, int | None]:
        """See ``run.job.Job.wanted``."""
        return super().wanted(ranks) | {"learners": 1}

    def check_layout(self, layout: Layout) -> None:
        """Refuses layouts without actors, and lock-step that does not divide."""
        if not layout.actors:
            raise UsageError("--actors 0: GA3C's learner does not act; give at least 1 actor")
        super().check_layout(layout)
        envs = len(layout.actors) * self.envs_per_actor
        if self.lockstep and envs % self.batch_size:
            raise UsageError(
                f"--lockstep: the {envs} environments of all actors do not make whole batches of "
                f"{self.batch_size} unrolls; choose --batch-size or --envs-per-actor so that they "
                "do"
            )


PAPER = replace(
    GA3C(),
    net="shallow",
    precision="fp32",
    unroll_length=5,
    envs_per_actor=16,
    groups=16,
    batch_size=8,
    predictors=2,
    trainers=2,
    baseline_cost=1.0,
    optimizer="rmsprop",
    learning_rate=3e-4,
    anneal=False,
    epsilon=0.1,
    total_frames=400_000_000,
)
"""Babaeizadeh et al. 2017, section 5.1: an agent is a group of one environment here."""

PRESETS = {"small": GA3C(), "paper": PAPER}
