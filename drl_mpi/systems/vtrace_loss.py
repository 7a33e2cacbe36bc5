"""IMPALA's loss (Espeholt et al. 2018, section 4)."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import torch

from drl_mpi.experience.batch import Batch
from drl_mpi.losses import action_log_probs, entropy_loss, policy_gradient_loss, value_loss, vtrace
from drl_mpi.nets import Network, PolicyValue
from drl_mpi.systems.pure_loss import PureLoss

if TYPE_CHECKING:
    from drl_mpi.systems.impala import Impala


class VTraceLoss(PureLoss):
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
