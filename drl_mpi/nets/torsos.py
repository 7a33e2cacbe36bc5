"""From observations to features.

A torso takes one batch of observations [N, *observation_shape] (uint8, read as
x / 255, or float32, read as it is) and gives features [N, features] in the
compute dtype. Images are channels first; inside, activations are
channels_last, and features are flattened in the order height, width, channel
so that no layer ever copies its input into another layout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drl_mpi.nets.layers import UINT8_SCALE, Conv, Linear


class Torso(nn.Module):
    """What every torso has: `features`, the width of its output."""

    features: int

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError


class MLP(Torso):
    """Two tanh layers of 64 for vectors (ours; the usual size for control tasks)."""

    def __init__(self, inputs: int, streams: int = 1) -> None:
        super().__init__()
        self.features = 64 * streams
        self.fc1 = Linear(inputs, 64)
        self.fc2 = Linear(64, self.features)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        scale = UINT8_SCALE if x.dtype == torch.uint8 else 1.0
        hidden = torch.tanh(self.fc1(x.to(dtype), scale))
        return torch.tanh(self.fc2(hidden))


class Plain(Torso):
    """Convolutions, each with a ReLU, then one fully connected layer."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        layers: list[tuple[int, int, int]],
        width: int,
    ) -> None:
        super().__init__()
        channels, height, width_px = shape
        self.convs = nn.ModuleList()
        for outputs, kernel, stride in layers:
            conv = Conv(channels, outputs, kernel, stride)
            height, width_px = conv.size_after(height), conv.size_after(width_px)
            channels = outputs
            self.convs.append(conv)
        self.features = width
        self.fc = Linear(channels * height * width_px, width)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        scale = UINT8_SCALE if x.dtype == torch.uint8 else 1.0
        y = to_channels_last(x, dtype)
        for i, conv in enumerate(self.convs):
            y = F.relu_(conv(y, scale if i == 0 else 1.0))
        return F.relu_(self.fc(flatten_hwc(y)))


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3, same size.

    The last convolution starts small: with the full gain, six blocks make the first
    features 14 in RMS and the first values 15; with half of it, 0.6 and 0.7.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, 3, padding=1)
        self.conv2 = Conv(channels, channels, 3, padding=1, gain=0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(x))
        out: Tensor = x + self.conv2(F.relu_(y))
        return out


class Section(nn.Module):
    """Conv 3x3, max-pool 3/2, two residual blocks: halves the image (rounding up)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Conv(inputs, outputs, 3, padding=1, gain=1.0)  # no ReLU before or after it
        self.block1 = Residual(outputs)
        self.block2 = Residual(outputs)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y = halve(self.conv(x, scale))
        out: Tensor = self.block2(self.block1(y))
        return out


class Deep(Torso):
    """The residual torso of IMPALA (Espeholt et al. 2018, figure 3, without its LSTM)."""

    def __init__(self, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, width_px = shape
        self.sections = nn.ModuleList()
        for outputs in (16, 32, 32):
            self.sections.append(Section(channels, outputs))
            channels, height, width_px = outputs, (height + 1) // 2, (width_px + 1) // 2
        self.features = width
        self.fc = Linear(channels * height * width_px, width)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        scale = UINT8_SCALE if x.dtype == torch.uint8 else 1.0
        y = to_channels_last(x, dtype)
        for i, section in enumerate(self.sections):
            y = section(y, scale if i == 0 else 1.0)
        return F.relu_(self.fc(flatten_hwc(F.relu_(y))))


def flatten_hwc(y: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H * W * C]: a view, where y is channels_last."""
    return y.permute(0, 2, 3, 1).flatten(1)


def to_channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Re-lay while the pixels are bytes, then cast: half the time of both in one pass.

    An x that is channels_last already (strided so by whoever stacked it) is only cast.
    """
    return x.contiguous(memory_format=torch.channels_last).to(dtype)


def halve(x: Tensor) -> Tensor:
    """Max-pool 3x3, stride 2, padding 1: [N, C, H, W] -> [N, C, ceil(H/2), ceil(W/2)].

    Without gradients no winner has to be remembered, and a maximum along the height
    and then the width gives the same numbers in half the time on a CPU.
    """
    if x.device.type != "cpu" or (x.requires_grad and torch.is_grad_enabled()):
        return F.max_pool2d(x, 3, stride=2, padding=1)
    return _halve_axis(_halve_axis(x, 2), 3)


def _halve_axis(x: Tensor, axis: int) -> Tensor:
    """The greatest of x[2i - 1], x[2i], x[2i + 1] along one axis, as far as they exist."""
    even = x[:, :, ::2] if axis == 2 else x[:, :, :, ::2]
    odd = x[:, :, 1::2] if axis == 2 else x[:, :, :, 1::2]
    evens, odds = even.shape[axis], odd.shape[axis]
    if evens == odds:
        y = torch.maximum(even, odd)
    else:
        last = even.narrow(axis, odds, 1)
        y = torch.cat((torch.maximum(even.narrow(axis, 0, odds), odd), last), dim=axis)
    after = y.narrow(axis, 1, evens - 1)
    torch.maximum(after, odd.narrow(axis, 0, evens - 1), out=after)
    return y
