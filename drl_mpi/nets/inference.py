"""A copy of a network that only acts."""

from __future__ import annotations

import copy

import torch

from drl_mpi.nets.layers import Conv, Linear
from drl_mpi.nets.network import Network


def inference_copy(net: Network, precision: str | None = None) -> Network:
    """A copy without gradients that computes in `precision` (default: the net's own).

    In bf16 the torso's weights are *held* in bfloat16, so that a call casts nothing;
    `load_flat(copy, vector)` refreshes them from the float32 vector in one pass. The
    first layer stays float32: its weights are few, and scaled by 1/255 at use.
    """
    acting = copy.deepcopy(net).requires_grad_(False)
    acting.precision = net.precision if precision is None else precision
    if acting.precision == "bf16":
        layers = [m for m in acting.torso.modules() if isinstance(m, Conv | Linear)]
        for layer in layers[1:]:
            layer.to(torch.bfloat16)
    return acting
