"""A3C: asynchronous advantage actor-critic (Mnih et al. 2016, arXiv 1602.01783).

actions: local | experience: consumed in place | gradients: parameter servers | loss: n-step
actor-critic
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from drl_mpi.errors import UsageError
from drl_mpi.run.layout import Layout
from drl_mpi.systems.served import COLUMNS, Served

if TYPE_CHECKING:
    from drl_mpi.acting.choosing import Choose
    from drl_mpi.experience.source import Source
    from drl_mpi.nets import FlatParameters, Network
    from drl_mpi.roles.loss import Loss
    from drl_mpi.systems.builder import Builder
    from drl_mpi.systems.learner_builder import LearnerBuilder


@dataclass(frozen=True, kw_only=True)
class A3C(Served):
    """A3C: workers that act and learn, each on environments of its own, and parameter servers.

    A worker is a learner's rank; there are no actors' ranks. The defaults are for a small machine
    and are ours: measured, see docs/benchmarks.md. ``--preset paper`` has the settings of Mnih et
    al. 2016 (``--core lstm`` for its recurrent variant).
    """

    unroll_length: int = 20
    """Steps per update and environment, t_max (Mnih et al. 2016: 5, with which Pong had not begun
    to be learned after 5M frames)."""
    envs_per_actor: int = 8
    """Environments that each worker steps together (ours; the paper's workers have one)."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where workers learn; with "auto" or "cuda" there can be no more of them than GPUs."""
    gamma: float = 0.99
    """Discount per step (Mnih et al. 2016: 0.99)."""
    reward_clip: float = 1.0
    """Rewards are clipped to [-c, c] for learning; 0 leaves them as they are (Mnih et al. 2016:
    1)."""
    baseline_cost: float = 0.5
    """Weight of the value loss 0.5 (R - V)^2 (R: 0.5 in the authors' later code)."""
    entropy_cost: float = 0.01
    """Weight of the entropy bonus (Mnih et al. 2016: 0.01)."""
    optimizer: Literal["adagrad", "rmsprop", "centred-rmsprop", "adam"] = "adam"
    """Optimiser of the servers (Mnih et al. 2016: rmsprop with shared statistics)."""
    learning_rate: float = 4e-4
    """At the start; falls linearly to 0 at ``total_frames`` (Mnih et al. 2016: drawn from 1e-4 to
    1e-2, with rmsprop)."""
    decay: float = 0.99
    """RMSProp: decay of the averages (Mnih et al. 2016: 0.99)."""
    epsilon: float = 1e-5
    """Optimiser's epsilon: inside the root for rmsprop, outside for adam and adagrad (ours; the
    paper names none, Babaeizadeh et al. 2017 have 0.1)."""
    max_gradient_norm: float = 40.0
    """Gradients are clipped to this global norm (Mnih et al. 2016: 40)."""

    name: ClassVar[str] = "a3c"
    columns: ClassVar[tuple[str, ...]] = ("policy_loss", "value_loss", "entropy", *COLUMNS)

    # -- the choices ----------------------------------------------------------------------------

    def choose(self, builder: Builder) -> Choose:  # noqa: ARG002 (all workers alike)
        """Samples from the policy."""
        from drl_mpi.acting.choosing import choose_by_softmax

        return choose_by_softmax

    def make_source(self, builder: LearnerBuilder) -> Source[Any]:
        """Each unroll once, where it was made."""
        return builder.queue(self.envs_per_actor)

    def make_loss(self, net: Network, flat: FlatParameters) -> Loss[Any]:  # noqa: ARG002
        """N-step actor-critic."""
        from drl_mpi.systems.actor_critic_loss import ActorCriticLoss

        return ActorCriticLoss(net, self.baseline_cost, self.entropy_cost)

    # -- what follows from them -----------------------------------------------------------------

    def wanted(self, ranks: int | None) -> dict[str, int | None]:
        """See ``run.job.Job.wanted``."""
        return super().wanted(ranks) | {"actors": 0}

    def record_envs(self, layout: Layout) -> int:  # noqa: ARG002
        """See ``System.record_envs``."""
        return self.envs_per_actor

    def updates_per_round(self, layout: Layout) -> int:  # noqa: ARG002
        """See ``System.updates_per_round``."""
        return 1

    def check(self) -> None:
        """See ``RunConfig.check``."""
        super().check()
        for name, low, high in (("baseline_cost", 0.0, 1e6), ("entropy_cost", 0.0, 1e6)):
            self._within(name, low, high)
        if self.actors:
            raise UsageError(
                f"--actors {self.actors}: A3C's workers act for themselves; leave it out and "
                "choose --learners"
            )


PAPER = replace(
    A3C(),
    net="shallow",
    precision="fp32",
    unroll_length=5,
    envs_per_actor=1,
    optimizer="rmsprop",
    learning_rate=7e-4,
    epsilon=0.1,
    total_frames=320_000_000,
)
"""Mnih et al. 2016, section 5.1 and supplement 8; epsilon from Babaeizadeh et al. 2017."""

PRESETS = {"small": A3C(), "paper": PAPER}
