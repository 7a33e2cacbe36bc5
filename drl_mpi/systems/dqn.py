"""DQN (Mnih et al. 2015, Nature 518): the baseline that the others distribute.

actions: local | experience: replay | gradients: local | loss: Q-learning
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from drl_mpi.errors import UsageError
from drl_mpi.systems.q_learning import QLearning

if TYPE_CHECKING:
    from drl_mpi.systems.learner_builder import LearnerBuilder
    from drl_mpi.updating.protocol import Updating


@dataclass(frozen=True, kw_only=True)
class DQN(QLearning):
    """DQN: one learner with a replay, which acts for itself or is fed by actors.

    The defaults are for a small machine and are ours: measured on Pong, see docs/benchmarks.md.
    ``--preset paper`` has the settings of Mnih et al. 2015, as far as they go together with several
    environments at once.
    """

    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Optimiser (Mnih et al. 2015: centred rmsprop; ours is plain)."""
    decay: float = 0.95
    """RMSProp: decay of the squared gradient's average (Mnih et al. 2015: 0.95)."""

    name: ClassVar[str] = "dqn"

    def wanted(self, ranks: int | None) -> dict[str, int | None]:
        """One learner, fed by actors; it acts for itself alone or with ``--actors 0``."""
        alone = ranks == 1 and self.actors is None
        return {"learners": 1, "servers": 0, "actors": 0 if alone else self.actors}

    def make_updating(self, builder: LearnerBuilder) -> Updating:
        """Local."""
        return builder.update_locally(self.make_optimizer())

    def check(self) -> None:
        """See ``RunConfig.check``."""
        super().check()
        if self.learners not in (None, 1):
            raise UsageError(
                f"--learners {self.learners}: DQN has one; for more use jobs/gorilla.py"
            )


PAPER = replace(
    DQN(),
    net="nature",
    precision="fp32",
    n_steps=1,
    double=False,
    target_period=10_000,
    optimizer="rmsprop",
    learning_rate=2.5e-4,
    epsilon=0.01 / 32**2,
    replay_capacity=1_000_000,
    replay_start=50_000,
    exploration_end=0.1,
    exploration_horizon=4_000_000,
    total_frames=200_000_000,
)
"""Mnih et al. 2015, extended data table 1. Its epsilon of 0.01 is for gradients summed over 32, its
1M frames of exploration are steps; its RMSProp is centred, ours is not."""

PRESETS = {"small": DQN(), "paper": PAPER}
