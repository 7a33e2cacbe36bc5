"""What systems with parameter servers share (Nair et al. 2015; Mnih et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from drl_mpi.errors import UsageError
from drl_mpi.run.layout import Layout
from drl_mpi.systems.config import MAX_RANKS
from drl_mpi.systems.system import System
from drl_mpi.updating.shard import BUCKETS
from drl_mpi.updating.shard_optimizers import ShardOptimizer, make_shard_optimizer

if TYPE_CHECKING:
    from drl_mpi.acting.parameters import Parameters
    from drl_mpi.systems.actor_builder import ActorBuilder
    from drl_mpi.systems.learner_builder import LearnerBuilder
    from drl_mpi.systems.system import RankContext, Ready
    from drl_mpi.updating.protocol import Updating

COLUMNS = (
    "staleness_mean",
    "staleness_max",
    "stale_rate",
    "outlier_rate",
    *(f"staleness_{(1 << i) >> 1}" for i in range(BUCKETS)),
)
"""Of progress.csv: share of gradients with a staleness from this number up to the next."""


@dataclass(frozen=True, kw_only=True)
class Served(System):
    """Parameters live on servers, a contiguous shard each; learners push gradients and pull."""

    servers: int = 1
    """Ranks that serve parameters, an equal share each (Nair et al. 2015: 31)."""
    optimizer: Literal["adagrad", "rmsprop", "centred-rmsprop", "adam"]
    max_staleness: int | None = None
    """Servers drop gradients that are older than this many updates of their shard; by default 10
    per learner, but at least 100: of n equal learners a gradient is n - 1 updates old (ours; Nair
    et al. 2015 name no number)."""
    outlier_threshold: float = 8.0
    """Learners drop gradients whose loss or norm is this many standard deviations above its mean;
    0 drops only what is not finite (ours; Nair et al. 2015 name no number)."""
    pull_every: int = 1
    """Unrolls between two pulls of an actor with a rank of its own."""

    MAY_CHANGE: ClassVar[frozenset[str]] = System.MAY_CHANGE | {"servers", "pull_every"}

    def staleness_limit(self, layout: Layout) -> int:
        """Versions beyond which servers drop a gradient."""
        if self.max_staleness is not None:
            return self.max_staleness
        return max(100, 10 * len(layout.learners))

    def make_shard_optimizer(self, size: int) -> ShardOptimizer:
        """Of a shard with so many parameters."""
        return make_shard_optimizer(self.optimizer, size, **self.optimizer_settings())

    @property
    def served(self) -> bool:
        """See ``System.served``."""
        return True

    def wanted(self, ranks: int | None) -> dict[str, int | None]:
        """See ``run.job.Job.wanted``."""
        return super().wanted(ranks) | {"servers": self.servers}

    def make_updating(self, builder: LearnerBuilder) -> Updating:
        """On the servers."""
        return builder.update_on_servers(self)

    def make_parameters(self, builder: ActorBuilder) -> Parameters:
        """From the servers."""
        return builder.pull(self)

    def make_server(self, context: RankContext) -> Ready:
        """See ``System.make_server``. Loads no torch."""
        from drl_mpi.systems.serving import Serving

        return Serving(self, context)

    def check(self) -> None:
        """See ``RunConfig.check``."""
        super().check()
        for name, low, high in (
            ("servers", 1, MAX_RANKS),
            ("outlier_threshold", 0.0, 1e9),
            ("pull_every", 1, 10**9),
        ):
            self._within(name, low, high)
        if self.max_staleness is not None:
            self._within("max_staleness", 0, 10**12)

    def check_layout(self, layout: Layout) -> None:
        """In lock-step an actor pulls before every unroll."""
        super().check_layout(layout)
        if self.lockstep and self.pull_every != 1:
            raise UsageError(
                f"--lockstep with --pull-every {self.pull_every}: actors pull in turn, before "
                "every unroll; leave --pull-every at 1"
            )
        limit, others = self.staleness_limit(layout), len(layout.learners) - 1
        if self.lockstep and limit < others:
            raise UsageError(
                f"--lockstep with --max-staleness {limit}: in turn every gradient but the first is "
                f"{others} updates old, and would be dropped; allowed: {others} or more"
            )
