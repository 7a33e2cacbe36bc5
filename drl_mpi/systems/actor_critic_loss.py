"""A3C's loss (Mnih et al. 2016, section 4)."""

from __future__ import annotations

import torch

from drl_mpi.experience.batch import Batch
from drl_mpi.losses import discounted_returns, entropy_loss, policy_gradient_loss, value_loss
from drl_mpi.nets import Network, PolicyValue
from drl_mpi.systems.pure_loss import PureLoss


class ActorCriticLoss(PureLoss):
    """Policy gradient with n-step returns, value regression and entropy, summed over the batch.

    On-policy: the batch was acted with the parameters that are differentiated.

    Args:
        net: the network to train, with a policy and a value head.
        baseline_cost: weight of the value loss 0.5 (R - V)^2.
        entropy_cost: weight of the entropy bonus.
        min_probability: the guard of GA3C's logarithms (Babaeizadeh et al. 2017, section 3.3).
    """

    def __init__(
        self,
        net: Network,
        baseline_cost: float,
        entropy_cost: float,
        min_probability: float = 0.0,
    ) -> None:
        self._net = net
        self._baseline_cost = baseline_cost
        self._entropy_cost = entropy_cost
        self._guard = min_probability

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, and its terms per step to log."""
        t_max = batch.shape.length
        output, state = self._net(batch.observations[:t_max], batch.firsts[:t_max], batch.state)
        assert isinstance(output, PolicyValue)
        with torch.no_grad():  # the last row only bootstraps
            last, _ = self._net(batch.observations[t_max:], batch.firsts[t_max:], state)
        values = output.value.detach()
        # A transition into a reset never happened: what comes before it bootstraps from the value
        # of the row itself, the game's last, and the row is not trained on.
        rewards = torch.where(batch.valid, batch.rewards, values)
        discounts = torch.where(batch.valid, batch.discounts, 0.0)
        returns = discounted_returns(rewards, discounts, last.value[0])
        valid = batch.valid
        policy = policy_gradient_loss(
            output.logits,
            batch.actions,
            returns - values,
            mask=valid,
            min_probability=self._guard,
        )
        value = value_loss(output.value, returns, mask=valid)
        entropy = entropy_loss(output.logits, mask=valid, min_probability=self._guard)
        loss = policy + self._baseline_cost * value + self._entropy_cost * entropy
        steps = valid.sum().clamp_min(1)
        return loss, {
            "policy_loss": policy.detach() / steps,
            "value_loss": value.detach() / steps,
            "entropy": -entropy.detach() / steps,
        }
