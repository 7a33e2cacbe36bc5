"""Gorilla DQN (Nair et al. 2015, arXiv 1507.04296).

actions: local | experience: replay, local or global | gradients: parameter servers | loss:
Q-learning
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from drl_mpi.errors import UsageError
from drl_mpi.run.layout import Layout
from drl_mpi.systems.q_learning import QLearning
from drl_mpi.systems.served import COLUMNS, Served


@dataclass(frozen=True, kw_only=True)
class Gorilla(QLearning, Served):
    """Gorilla: DQN with many learners and actors, and parameters on servers.

    The defaults are for a small machine and are ours: measured on Pong, see docs/benchmarks.md.
    ``--preset paper`` has what Nair et al. 2015 state; their thresholds for stale gradients and
    outliers, and their learning rate, are not published.
    """

    bundled: bool = False
    """Learners act for themselves, with a replay of their own, as in the paper's experiments
    (section 5); else actors have ranks of their own."""
    replay: Literal["local", "global"] = "local"
    """Where actors send: all to one learner, or an equal share of their environments to each, so
    that every learner's replay is a sample of all actors' experience (Nair et al. 2015, section 4:
    a global database)."""
    optimizer: Literal["adagrad", "rmsprop", "centred-rmsprop", "adam"] = "adam"
    """Optimiser of the servers (Nair et al. 2015: adagrad)."""
    decay: float = 0.95
    """RMSProp: decay of the averages (Mnih et al. 2015: 0.95)."""

    name: ClassVar[str] = "gorilla"
    MAY_CHANGE: ClassVar[frozenset[str]] = Served.MAY_CHANGE | QLearning.MAY_CHANGE
    columns: ClassVar[tuple[str, ...]] = (*QLearning.columns, *COLUMNS)

    def wanted(self, ranks: int | None) -> dict[str, int | None]:
        """See ``run.job.Job.wanted``."""
        return super().wanted(ranks) | ({"actors": 0} if self.bundled else {})

    def learners_of(self, actor: int, layout: Layout) -> tuple[int, ...]:
        """See ``System.learners_of``."""
        return layout.learners if self.replay == "global" else super().learners_of(actor, layout)

    def actors_of(self, learner: int, layout: Layout) -> tuple[int, ...]:
        """See ``System.actors_of``."""
        return layout.actors if self.replay == "global" else super().actors_of(learner, layout)

    def check(self) -> None:
        """See ``RunConfig.check``."""
        super().check()
        if self.bundled and self.actors:
            raise UsageError(
                f"--bundled with --actors {self.actors}: learners act for themselves; leave out one"
            )
        if self.bundled and self.replay == "global":
            raise UsageError("--bundled with --replay global: bundles keep what they make")

    def check_layout(self, layout: Layout) -> None:
        """See ``run.job.Job.check_layout``."""
        if self.replay == "global" and self.envs_per_actor % len(layout.learners):
            raise UsageError(
                f"--replay global: {self.envs_per_actor} environments per actor do not spread "
                f"evenly over {len(layout.learners)} learners; make --envs-per-actor a multiple"
            )
        super().check_layout(layout)


PAPER = replace(
    Gorilla(),
    bundled=True,
    servers=31,
    net="nature",
    precision="fp32",
    n_steps=1,
    double=False,
    target_period=60_000,
    optimizer="adagrad",
    learning_rate=0.01,
    epsilon=1e-8,
    replay_capacity=1_000_000,
    replay_start=50_000,
    exploration_end=0.1,
    exploration_horizon=1_000_000,
    exploration_counts="updates",
    total_frames=4_000_000_000,
)
"""Nair et al. 2015, section 5: 100 bundles, 31 servers. Learning rate and length are ours."""

PRESETS = {"small": Gorilla(), "paper": PAPER}
