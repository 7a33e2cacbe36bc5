"""IMPALA: importance weighted actor-learner architecture (Espeholt et al. 2018, arXiv 1802.01561).

actions: local, or central as in SEED | experience: queue, optionally with replay | gradients:
local, or all-reduce among learners | loss: V-trace
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, inf
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from drl_mpi.envs import EnvSpec
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
class Impala(Central):
    """IMPALA: actors send unrolls to learners, which correct for policy lag with V-trace.

    The defaults are for a small machine and are ours: measured on Pong, see docs/benchmarks.md.
    ``--preset paper`` has the Atari settings of Espeholt et al. 2018, appendix, made for 200M
    frames and hundreds of actors.
    """

    acting: Literal["local", "central"] = "local"
    """Where actions are chosen: by actors with a copy of the network, or by their learner for all
    of them, as in SEED (Espeholt et al. 2020), where actors only step environments."""
    unroll_length: int = 20
    """Steps per unroll, T (Espeholt et al. 2018: 20 on Atari)."""
    envs_per_actor: int = 16
    """Environments that each actor steps together (ours; the paper's actors have one each)."""
    batch_size: int = 16
    """Unrolls of single environments per update and learner, B (paper: 32)."""
    gamma: float = 0.99
    """Discount per step (paper: 0.99)."""
    reward_clip: float = 1.0
    """Rewards are clipped to [-c, c] for learning; 0 leaves them as they are (paper: 1)."""
    baseline_cost: float = 0.5
    """Weight of the value loss (paper: 0.5)."""
    entropy_cost: float = 0.01
    """Weight of the entropy bonus (paper: 0.01)."""
    normalize_advantages: bool = False
    """Divide advantages by their root mean square over the batch (not in the paper)."""
    clip_rho: float = 1.0
    """V-trace: bar on the importance weights of the temporal differences (paper: 1)."""
    clip_pg_rho: float = 1.0
    """V-trace: bar on the importance weights of the policy gradient (paper: 1)."""
    clip_c: float = 1.0
    """V-trace: bar on the trace coefficients, at most ``clip_rho`` (paper: 1)."""
    lambda_: Annotated[float, tyro.conf.arg(name="lambda")] = 1.0
    """V-trace: extra decay of the traces (paper: 1)."""
    optimizer: Literal["rmsprop", "adam"] = "adam"
    """Optimiser (paper: rmsprop)."""
    learning_rate: float = 4e-4
    """At the start; falls linearly to 0 at ``total_frames`` (paper: 6e-4 with rmsprop)."""
    decay: float = 0.99
    """RMSProp: decay of the squared gradient's average (paper: 0.99)."""
    epsilon: float = 1e-5
    """Optimiser's epsilon: inside the root for rmsprop, as in the paper (0.01 there), outside for
    adam."""
    max_gradient_norm: float = 40.0
    """Gradients are clipped to this global norm (paper: 40)."""
    replay_fraction: float = 0.75
    """Share of each batch that is sampled from replay (paper, section 5.2.2: 0.5). A small machine
    has few frames, so each is trained on four times."""
    replay_capacity: int = 256
    """Unrolls of single environments that the replay of each learner holds (paper: 10,000)."""
    gradient_sum: Literal["auto", "mpi", "nccl", "gloo"] = "auto"
    """How several learners sum their gradients: "mpi" in host memory, "nccl" between GPUs, "gloo"
    in host memory over TCP. "auto" takes nccl if the learners have GPUs, else mpi."""

    name: ClassVar[str] = "impala"
    columns: ClassVar[tuple[str, ...]] = ("policy_loss", "value_loss", "entropy")
    MAY_CHANGE: ClassVar[frozenset[str]] = Central.MAY_CHANGE | {"gradient_sum"}

    # -- the four choices -----------------------------------------------------------------------

    def choose(self, builder: Builder) -> Choose:  # noqa: ARG002 (all actors alike)
        """Samples from the policy."""
        from drl_mpi.acting.choosing import choose_by_softmax

        return choose_by_softmax

    def make_source(self, builder: LearnerBuilder) -> Source[Any]:
        """A queue, optionally topped up from a replay of unrolls."""
        return builder.queue(self.batch_size, self.batch_size - self.fresh, self.replay_capacity)

    def make_updating(self, builder: LearnerBuilder) -> Updating:
        """Local, or all-reduce among learners."""
        return builder.update_locally(self.make_optimizer(), self.gradient_sum)

    def make_loss(self, net: Network, flat: FlatParameters) -> Loss[Any]:  # noqa: ARG002
        """V-trace."""
        from drl_mpi.systems.vtrace_loss import VTraceLoss

        return VTraceLoss(net, self)

    # -- what follows from them -----------------------------------------------------------------

    @property
    def fresh(self) -> int:
        """Columns of a batch that come straight from actors."""
        return self.batch_size - round(self.batch_size * self.replay_fraction)

    @property
    def record_width(self) -> int:
        """Environments per record: as many as both actors and batches can be cut into."""
        return gcd(self.group_envs if self.central else self.envs_per_actor, self.fresh)

    @property
    def central(self) -> bool:
        """See ``System.central``."""
        return self.acting == "central"

    def record_envs(self, layout: Layout) -> int:  # noqa: ARG002
        """See ``System.record_envs``."""
        return self.record_width

    def updates_per_round(self, layout: Layout) -> int:
        """See ``System.updates_per_round``."""
        actors = layout.actors_of(layout.learners[0])
        return max(1, len(actors) * self.envs_per_actor // self.fresh)

    def replay_size(self) -> int:
        """See ``System.replay_size``."""
        return self.replay_capacity if self.replay_fraction else 0

    def memory_bytes(self, spec: EnvSpec, layout: Layout, learner: int) -> int:  # noqa: ARG002
        """See ``System.memory_bytes``."""
        rows = spec.stack + self.unroll_length
        return self.replay_size() * rows * spec.frame_bytes

    def check(self) -> None:
        """See ``RunConfig.check``."""
        super().check()
        for field, low, high in (
            ("batch_size", 1, 1_000_000),
            ("replay_capacity", 1, 10**9),
            ("baseline_cost", 0.0, 1e6),
            ("entropy_cost", 0.0, 1e6),
            ("clip_rho", 0.0, inf),
            ("clip_pg_rho", 0.0, inf),
            ("lambda_", 0.0, 1.0),
        ):
            self._within(field, low, high)
        if not 0.0 <= self.replay_fraction < 1.0:
            raise UsageError(
                f"--replay-fraction is {self.replay_fraction}; allowed: 0 to below 1, since some "
                "of each batch must be fresh"
            )
        replayed = self.batch_size * self.replay_fraction
        if abs(replayed - round(replayed)) > 1e-9:
            raise UsageError(
                f"--replay-fraction {self.replay_fraction} of --batch-size {self.batch_size} is "
                f"{replayed:g} unrolls; it must be a whole number: change either"
            )
        if not 0.0 <= self.clip_c <= self.clip_rho:
            raise UsageError(
                f"--clip-c is {self.clip_c}; allowed: 0 to --clip-rho ({self.clip_rho}), since a "
                "trace must not outweigh the difference that it carries (paper, section 4.1)"
            )

    def check_layout(self, layout: Layout) -> None:
        """Refuses layouts that cannot fill batches, or not in a fixed order."""
        if not layout.actors:
            raise UsageError(
                "--actors 0: IMPALA's learners do not act; give at least 1 actor per learner"
            )
        if self.gradient_sum == "nccl" and layout.ranks[layout.learners[0]].gpu is None:
            raise UsageError(
                "--gradient-sum nccl, but the learners have no GPUs, which is where NCCL sums; use "
                "--gradient-sum auto, or give each learner a GPU"
            )
        super().check_layout(layout)
        for learner in layout.learners:
            round_envs = len(layout.actors_of(learner)) * self.envs_per_actor
            if self.lockstep and round_envs % self.fresh:
                raise UsageError(
                    f"--lockstep: the {round_envs} environments of a learner's actors do not make "
                    f"whole batches of {self.fresh} fresh unrolls; choose --batch-size or "
                    "--envs-per-actor so that they do"
                )


PAPER = replace(
    Impala(),
    net="shallow",
    precision="fp32",
    envs_per_actor=32,
    batch_size=32,
    replay_fraction=0.0,
    replay_capacity=10_000,
    optimizer="rmsprop",
    learning_rate=6e-4,
    epsilon=0.01,
    total_frames=200_000_000,
    stream_depth=2,
)
"""Espeholt et al. 2018, appendix: the Atari experiments with the shallow network."""

PRESETS = {"small": Impala(), "paper": PAPER}
