"""The Q-learning loss and its target network (Mnih et al. 2015, Methods)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from drl_mpi.experience.transitions import TransitionBatch
from drl_mpi.losses import double_q_learning, q_learning
from drl_mpi.nets import FlatParameters, Network, QValues
from drl_mpi.updating.local import by_name, joined


class QLoss:
    """Huber loss of the temporal differences, averaged over the batch.

    The target network is a copy of the parameters that is renewed every ``period`` versions. With
    parameter servers a version is a global update and the parameters are theirs, as they were
    pulled for this gradient (Nair et al. 2015, section 4).

    Args:
        net: the network to train, with action values.
        flat: its parameters.
        period: versions between two renewals of the target network.
        double: select the next action with the network itself (van Hasselt et al. 2016).
    """

    def __init__(self, net: Network, flat: FlatParameters, period: int, double: bool) -> None:
        self._net = net
        self._flat = flat
        self._target = copy.deepcopy(net).requires_grad_(False)
        self._target_flat = FlatParameters(self._target)
        self._period = period
        self._double = double
        self._version = -1

    def prepare(self, version: int) -> None:
        """Renews the target network if that is due."""
        if self._version < 0 or version // self._period != self._version // self._period:
            self._target_flat.vector.copy_(self._flat.vector.detach())
            self._version = version

    def __call__(self, batch: TransitionBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, and what to log. Leaves the absolute errors in the batch."""
        first = torch.zeros((1, len(batch)), dtype=torch.bool, device=batch.rewards.device)
        observations = batch.observations.unsqueeze(0)
        next_observations = batch.next_observations.unsqueeze(0)
        q_t = self._q(self._target, next_observations, first)
        with torch.no_grad():
            select = self._q(self._net, next_observations, first) if self._double else None
        q_tm1 = self._q(self._net, observations, first)
        if select is None:
            errors = q_learning(q_tm1, batch.actions, batch.rewards, batch.discounts, q_t)
        else:
            errors = double_q_learning(
                q_tm1, batch.actions, batch.rewards, batch.discounts, q_t, select
            )
        batch.errors = errors.detach().abs()
        each = F.huber_loss(errors, torch.zeros_like(errors), reduction="none")
        loss = (batch.weights * each).mean()
        return loss, {
            "q_loss": loss.detach(),
            "q_mean": q_tm1.detach().amax(-1).mean(),
            "td_error": batch.errors.mean(),
            "target_version": torch.tensor(float(self._version)),
        }

    def state(self) -> dict[str, Any]:
        """The target network, and the version that it is from."""
        return {
            "target": by_name(self._target_flat, self._target_flat.vector),
            "version": self._version,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        self._target_flat.vector.copy_(joined(self._target_flat, state["target"]))
        self._version = int(state["version"])

    @staticmethod
    def _q(net: Network, observations: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        output, _ = net(observations, first)
        assert isinstance(output, QValues)
        return output.q[0]
