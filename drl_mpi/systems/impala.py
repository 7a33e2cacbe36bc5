"""IMPALA: importance weighted actor-learner architecture (Espeholt et al. 2018, arXiv 1802.01561).

actions: local | experience: queue, optionally with replay | gradients: local, or all-reduce among
learners | loss: V-trace
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Annotated, ClassVar, Literal

import torch
import tyro

from drl_mpi.errors import UsageError
from drl_mpi.experience.batch import Batch
from drl_mpi.losses import action_log_probs, entropy_loss, policy_gradient_loss, value_loss, vtrace
from drl_mpi.nets import Network, PolicyValue
from drl_mpi.roles.learner import Loss
from drl_mpi.systems.actor_learner import ActorLearner
from drl_mpi.updating.optimizers import Adam, Optimizer, RMSProp


@dataclass(frozen=True, kw_only=True)
class Impala(ActorLearner):
    """IMPALA: actors send unrolls to learners, which correct for policy lag with V-trace.

    The defaults are for a small machine and are ours: measured on Pong, see docs/benchmarks.md.
    ``--preset paper`` has the Atari settings of Espeholt et al. 2018, appendix, made for 200M
    frames and hundreds of actors.
    """

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

    name: ClassVar[str] = "impala"

    def check(self) -> None:
        """See ``RunConfig.check``."""
        super().check()
        for field, low, high in (
            ("baseline_cost", 0.0, 1e6),
            ("entropy_cost", 0.0, 1e6),
            ("clip_rho", 0.0, inf),
            ("clip_pg_rho", 0.0, inf),
            ("lambda_", 0.0, 1.0),
        ):
            self._within(field, low, high)
        if not 0.0 <= self.clip_c <= self.clip_rho:
            raise UsageError(
                f"--clip-c is {self.clip_c}; allowed: 0 to --clip-rho ({self.clip_rho}), since a "
                "trace must not outweigh the difference that it carries (paper, section 4.1)"
            )

    def make_loss(self, net: Network) -> Loss:
        """V-trace."""
        return VTraceLoss(net, self)

    def make_optimizer(self) -> Optimizer:
        """RMSProp as in the paper, or Adam."""
        if self.optimizer == "rmsprop":
            return RMSProp(decay=self.decay, eps=self.epsilon)
        return Adam(eps=self.epsilon)


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


class VTraceLoss:
    """The three terms of IMPALA's loss, summed over time and batch.

    Args:
        net: the network to train, with a policy and a value head.
        config: weights and bars.
    """

    def __init__(self, net: Network, config: Impala) -> None:
        self._net = net
        self._config = config

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, and its terms per step to log."""
        config, t_max = self._config, batch.shape.length
        output, state = self._net(batch.observations[:t_max], batch.firsts[:t_max], batch.state)
        assert isinstance(output, PolicyValue)
        with torch.no_grad():  # the last row only bootstraps
            last, _ = self._net(batch.observations[t_max:], batch.firsts[t_max:], state)
            log_pi = action_log_probs(output.logits, batch.actions)
            # A weight of zero leaves the transition into a reset without delta, trace or gradient.
            log_rhos = (log_pi - batch.log_probs).masked_fill(~batch.valid, -inf)
        targets = vtrace(
            log_rhos,
            batch.discounts,
            batch.rewards,
            output.value.detach(),
            last.value[0],
            clip_rho=config.clip_rho,
            clip_pg_rho=config.clip_pg_rho,
            clip_c=config.clip_c,
            lambda_=config.lambda_,
        )
        advantages = targets.pg_advantages
        if config.normalize_advantages:
            advantages = advantages / advantages.square().mean().sqrt().clamp_min(1e-3)
        policy = policy_gradient_loss(output.logits, batch.actions, advantages)
        value = value_loss(output.value, targets.vs)
        entropy = entropy_loss(output.logits, mask=batch.valid)
        loss = policy + config.baseline_cost * value + config.entropy_cost * entropy
        steps = batch.valid.sum().clamp_min(1)
        return loss, {
            "policy_loss": policy.detach() / steps,
            "value_loss": value.detach() / steps,
            "entropy": -entropy.detach() / steps,
        }
