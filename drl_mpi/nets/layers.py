"""Layers that compute in the dtype of their input, whatever dtype their weights have.

A float32 weight under a bfloat16 activation is cast at use (training: once per
pass, and autograd casts the gradient back); a weight that is already bfloat16
(an acting copy, see `inference.py`) is used as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UINT8_SCALE = 1.0 / 255.0


class Linear(nn.Module):
    """y = x W^T + b. `weight` [outputs, inputs], `bias` [outputs]."""

    def __init__(self, inputs: int, outputs: int, gain: float = math.sqrt(2.0)) -> None:
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def initialise(self, generator: torch.Generator) -> None:
        nn.init.orthogonal_(self.weight, self.gain, generator)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        weight = self.weight if scale == 1.0 else self.weight * scale
        return F.linear(x, weight.to(x.dtype), self.bias.to(x.dtype))


class Conv(nn.Module):
    """A convolution. `weight` [outputs, inputs, kernel, kernel], `bias` [outputs]."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        gain: float = math.sqrt(2.0),
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding, self.gain = kernel, stride, padding, gain
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def initialise(self, generator: torch.Generator) -> None:
        nn.init.orthogonal_(self.weight, self.gain, generator)

    def size_after(self, size: int) -> int:
        """Pixels along one axis after this layer, below 1 if `size` is too small."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        weight = self.weight if scale == 1.0 else self.weight * scale
        return F.conv2d(x, weight.to(x.dtype), self.bias.to(x.dtype), self.stride, self.padding)
