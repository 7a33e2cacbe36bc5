"""What DQN and Gorilla share: Q-learning of single transitions from a replay."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from drl_mpi.errors import UsageError
from drl_mpi.run.layout import Layout
from drl_mpi.systems.config import Count
from drl_mpi.systems.system import System

if TYPE_CHECKING:
    from drl_mpi.acting.choosing import Choose
    from drl_mpi.envs import EnvSpec
    from drl_mpi.experience.source import Source
    from drl_mpi.nets import FlatParameters, Network
    from drl_mpi.roles.loss import Loss
    from drl_mpi.systems.builder import Builder
    from drl_mpi.systems.learner_builder import LearnerBuilder


@dataclass(frozen=True, kw_only=True)
class QLearning(System):
    """Q-learning with a target network, from a replay of single transitions."""

    unroll_length: int = 8
    """Steps per unroll: what an actor sends at a time, of one version of the parameters (ours)."""
    envs_per_actor: int = 16
    """Environments that each actor steps together (ours; the papers' have one)."""
    batch_size: int = 32
    """Transitions per gradient (Mnih et al. 2015: 32)."""
    gamma: float = 0.99
    """Discount per step (Mnih et al. 2015: 0.99)."""
    reward_clip: float = 1.0
    """Rewards are clipped to [-c, c] for learning; 0 leaves them as they are (Mnih et al. 2015:
    1)."""
    n_steps: int = 3
    """Rewards before a transition bootstraps (Mnih et al. 2015: 1; Horgan et al. 2018: 3)."""
    double: bool = True
    """Double Q-learning (van Hasselt et al. 2016; not in Mnih et al. 2015)."""
    dueling: bool = False
    """Dueling head (Wang et al. 2016)."""
    target_period: Count = 1_000
    """Updates between renewals of the target network; global updates where servers apply them
    (Mnih et al. 2015: 10,000; Nair et al. 2015: 60,000)."""
    learning_rate: float = 1e-4
    """Step size; constant over the run."""
    epsilon: float = 1.5e-4
    """Optimiser's epsilon: inside the root for rmsprop, outside for adam and adagrad (Hessel et al.
    2018: 1.5e-4 with adam)."""
    max_gradient_norm: float = 10.0
    """Gradients are clipped to this global norm (Wang et al. 2016: 10)."""
    replay_capacity: Count = 100_000
    """Stored frames per learner: the newest frame of a step each, 7 KB on Atari (Mnih et al. 2015:
    1,000,000)."""
    replay_start: Count = 5_000
    """Stored frames per learner before it learns (Mnih et al. 2015: 50,000)."""
    replay_ratio: float = 8.0
    """How often a step is trained on, on average: learners and actors wait for each other to keep
    it (Mnih et al. 2015: 32 transitions every 4 steps are 8)."""
    replay_priority: float = 0.0
    """Exponent alpha of prioritised replay (Schaul et al. 2016: 0.6); 0 samples uniformly."""
    replay_beta: float = 0.4
    """Exponent of prioritised replay's importance weights at the start; 1 at ``total_frames``
    (Schaul et al. 2016: 0.4)."""
    exploration_start: float = 1.0
    """Chance of a random action at the start (Mnih et al. 2015: 1)."""
    exploration_end: float = 0.01
    """Chance of a random action from ``--exploration-horizon`` on (Mnih et al. 2015: 0.1)."""
    exploration_horizon: Count = 1_000_000
    """When exploration has fallen to its end: in frames or updates, see ``--exploration-counts``
    (Mnih et al. 2015: 1M steps, which are 4M frames; Nair et al. 2015: 1M global updates)."""
    exploration_counts: Literal["frames", "updates"] = "frames"
    """What the horizon counts: frames, or updates (global ones, where servers apply them)."""
    exploration_per_actor: bool = False
    """Instead of a schedule, one constant chance for each environment i of all N:
    0.4^(1 + 7 i / (N - 1)) (Horgan et al. 2018, section 4)."""

    MAY_CHANGE: ClassVar[frozenset[str]] = System.MAY_CHANGE | {"replay_capacity"}
    annealed: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = (
        "q_loss",
        "q_mean",
        "td_error",
        "target_version",
        "exploration",
        "replay_size",
        "replay_age",
    )

    # -- the choices ----------------------------------------------------------------------------

    def choose(self, builder: Builder) -> Choose:
        """Epsilon-greedily."""
        from drl_mpi.acting.choosing import ChooseEpsilonGreedily
        from drl_mpi.acting.exploration import per_actor_epsilons

        if self.exploration_per_actor:
            envs, first = self.envs_per_actor, builder.acting_index * self.envs_per_actor
            epsilons = per_actor_epsilons(builder.acting_ranks * envs)[first : first + envs]
            return ChooseEpsilonGreedily(lambda _version, _steps: epsilons)
        repeat = builder.prepared.spec.action_repeat
        return ChooseEpsilonGreedily(
            lambda version, steps: self.exploration(version, steps * repeat)
        )

    def exploration(self, version: int, frames: int) -> float:
        """Epsilon after so many updates and frames."""
        from drl_mpi.acting.exploration import EpsilonSchedule

        count = frames if self.exploration_counts == "frames" else version
        return EpsilonSchedule(
            self.exploration_start, self.exploration_end, self.exploration_horizon
        )(count)

    def make_source(self, builder: LearnerBuilder) -> Source[Any]:
        """A replay of transitions."""
        repeat = builder.prepared.spec.action_repeat

        def beta() -> float:
            done = min(1.0, builder.updating.steps * repeat / self.total_frames)
            return self.replay_beta + (1.0 - self.replay_beta) * done

        return builder.replay(
            self.batch_size,
            self.replay_capacity,
            n_steps=self.n_steps,
            alpha=self.replay_priority,
            beta=beta,
            start=self.replay_start,
            steps_per_update=self.steps_per_update,
        )

    def make_loss(self, net: Network, flat: FlatParameters) -> Loss[Any]:
        """Temporal differences."""
        from drl_mpi.systems.q_loss import QLoss

        return QLoss(net, flat, self.target_period, self.double)

    def gauges(self, version: int, frames: int) -> dict[str, float]:
        """See ``System.gauges``."""
        if self.exploration_per_actor:
            return {}
        return {"exploration": self.exploration(version, frames)}

    # -- what follows from them -----------------------------------------------------------------

    @property
    def head(self) -> str:
        """See ``System.head``."""
        return "dueling" if self.dueling else "q"

    @property
    def steps_per_update(self) -> Fraction:
        """Agent decisions that a learner takes in per batch; exact, as lock-step counts on it."""
        return self.batch_size / Fraction(str(self.replay_ratio))

    def record_envs(self, layout: Layout) -> int:
        """See ``System.record_envs``."""
        if not layout.actors:
            return self.envs_per_actor
        return self.envs_per_actor // len(self.learners_of(layout.actors[0], layout))

    def updates_per_round(self, layout: Layout) -> int:
        """See ``System.updates_per_round``."""
        return max(1, round(self._steps_per_round(layout) / self.steps_per_update))

    def warm_up_unrolls(self, layout: Layout) -> int:
        """See ``System.warm_up_unrolls``."""
        return -(-self.replay_start // self._steps_per_round(layout))

    def replay_size(self) -> int:
        """See ``System.replay_size``."""
        return self.replay_capacity

    def memory_bytes(self, spec: EnvSpec, layout: Layout, learner: int) -> int:
        """See ``System.memory_bytes``."""
        from drl_mpi.experience.replay import storage_bytes

        lanes = self._lanes(layout, learner)
        return storage_bytes(spec, lanes, self.replay_capacity, bool(self.replay_priority))

    def _lanes(self, layout: Layout, learner: int) -> int:
        """Environments whose steps come to a learner."""
        actors = self.actors_of(learner, layout)
        if not actors:
            return self.envs_per_actor
        return len(actors) * self.envs_per_actor // len(self.learners_of(actors[0], layout))

    def _steps_per_round(self, layout: Layout) -> int:
        """Agent decisions that one unroll of every actor brings to a learner."""
        return self._lanes(layout, layout.learners[0]) * self.unroll_length

    def check(self) -> None:
        """See ``RunConfig.check``."""
        super().check()
        for name, low, high in (
            ("batch_size", 1, 1_000_000),
            ("n_steps", 1, 1_000),
            ("target_period", 1, 10**12),
            ("replay_capacity", 1, 10**10),
            ("replay_start", 1, 10**10),
            ("replay_ratio", 1e-3, 1e6),
            ("replay_priority", 0.0, 1.0),
            ("replay_beta", 0.0, 1.0),
            ("exploration_start", 0.0, 1.0),
            ("exploration_end", 0.0, 1.0),
            ("exploration_horizon", 1, 10**15),
        ):
            self._within(name, low, high)
        if self.replay_start > self.replay_capacity:
            raise UsageError(
                f"--replay-start {self.replay_start} is more than --replay-capacity "
                f"{self.replay_capacity}; learning would never begin: lower it"
            )
        if self.exploration_end > self.exploration_start:
            raise UsageError(
                f"--exploration-end {self.exploration_end} is above --exploration-start "
                f"{self.exploration_start}; exploration should fall: swap them"
            )
        if self.core != "none":
            raise UsageError(
                f"--core {self.core}: {self.name} replays single transitions, which have no "
                "recurrent state; use --core none"
            )

    def check_layout(self, layout: Layout) -> None:
        """Refuses layouts whose environments do not spread, and lock-step that does not divide."""
        super().check_layout(layout)
        for learner in layout.learners:
            lanes = self._lanes(layout, learner)
            if self.replay_start > self.replay_capacity // lanes * lanes:
                raise UsageError(
                    f"--replay-start {self.replay_start} of --replay-capacity "
                    f"{self.replay_capacity}: {lanes} environments share the replay evenly, which "
                    f"leaves room for {self.replay_capacity // lanes * lanes}; raise the latter"
                )
        if not self.lockstep:
            return
        steps = self._steps_per_round(layout)
        updates = steps / self.steps_per_update
        if updates.denominator != 1 or self.replay_start % steps:
            raise UsageError(
                f"--lockstep: one unroll of all actors brings {steps} steps to a learner, for "
                f"{float(updates):g} updates; that must be a whole number, and --replay-start "
                f"({self.replay_start}) a multiple of {steps}: change --envs-per-actor, "
                "--unroll-length, --batch-size or --replay-ratio"
            )
        rows = self.replay_start // self._lanes(layout, layout.learners[0])
        if rows <= self.n_steps:
            raise UsageError(
                f"--lockstep: --replay-start {self.replay_start} is {rows} steps of each "
                f"environment, from which no {self.n_steps}-step transition can be made yet; that "
                f"takes more than {self.n_steps}: raise it"
            )

    def check_env(self, spec: EnvSpec, layout: Layout) -> None:
        """Refuses a replay in which no transition has room, and runs that end before they learn."""
        from drl_mpi.experience.replay import check_capacity

        for learner in layout.learners:
            try:
                check_capacity(
                    spec, self._lanes(layout, learner), self.replay_capacity, self.n_steps
                )
            except ValueError as error:
                raise UsageError(f"--replay-capacity {self.replay_capacity}: {error}") from error
        frames = self.replay_start * len(layout.learners) * spec.action_repeat
        if frames >= self.total_frames:
            raise UsageError(
                f"--total-frames {self.total_frames} is over before every learner has "
                f"--replay-start {self.replay_start} stored frames, at {frames} frames; raise the "
                "former or lower the latter"
            )
