"""From features to what an agent uses: always in float32.

A bfloat16 value near 1 has steps of 1/128, the size of an advantage, so a head
casts its input up and its weights are never cast down.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from drl_mpi.nets.layers import Linear


class PolicyValue(NamedTuple):
    """What an actor-critic network says."""

    logits: Tensor
    """[T, B, A] float32, unnormalised log-probabilities."""
    value: Tensor
    """[T, B] float32."""


class QValues(NamedTuple):
    """What a Q network says."""

    q: Tensor
    """[T, B, A] float32."""


Output = PolicyValue | QValues


class PolicyValueHead(nn.Module):
    """Two linear read-outs of the same features."""

    def __init__(self, features: int, num_actions: int) -> None:
        super().__init__()
        self.policy = Linear(features, num_actions, gain=0.01)
        self.value = Linear(features, 1, gain=1.0)

    def forward(self, x: Tensor) -> PolicyValue:
        x = x.float()
        return PolicyValue(self.policy(x), self.value(x).squeeze(-1))


class QHead(nn.Module):
    """One linear read-out."""

    def __init__(self, features: int, num_actions: int) -> None:
        super().__init__()
        self.q = Linear(features, num_actions, gain=1.0)

    def forward(self, x: Tensor) -> QValues:
        return QValues(self.q(x.float()))


class DuelingHead(nn.Module):
    """q = value + advantage - mean(advantage) (Wang et al. 2016, equation 9).

    The first half of the features is the value stream, the second half the
    advantage stream. Without a core the torso's last layer is made twice as wide
    for them; after a core (`hidden` > 0) they are a layer of their own.
    """

    def __init__(self, features: int, num_actions: int, hidden: int = 0) -> None:
        super().__init__()
        self.hidden = Linear(features, 2 * hidden) if hidden else None
        stream = hidden or features // 2
        self.value = Linear(stream, 1, gain=1.0)
        self.advantage = Linear(stream, num_actions, gain=1.0)

    def forward(self, x: Tensor) -> QValues:
        x = x.float()
        if self.hidden is not None:
            x = F.relu_(self.hidden(x))
        for_value, for_advantage = x.chunk(2, dim=-1)
        advantage = self.advantage(for_advantage)
        return QValues(self.value(for_value) + advantage - advantage.mean(-1, keepdim=True))
