"""What every loss asks of its arguments, so that a silent broadcast never trains a network."""

import math

import torch
from torch import Tensor


def require_time_major(**tensors: Tensor) -> torch.Size:
    """Return the one shape [T, B, ...] that all tensors have; T >= 1."""
    names = list(tensors)
    first = names[0]
    shape = tensors[first].shape
    if len(shape) < 2 or shape[0] < 1:
        raise ValueError(
            f"{first} has shape {list(shape)}; expected [T, B, ...] with T >= 1: "
            "put time first, then the batch (unsqueeze(1) makes a batch of one)"
        )
    for name in names[1:]:
        require_shape(name, tensors[name], shape, f"that of {first}")
    return shape


def require_shape(name: str, tensor: Tensor, shape: torch.Size, meaning: str) -> None:
    """Refuse a tensor of any other shape; ``meaning`` says where the shape comes from."""
    if tensor.shape != shape:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}; expected {list(shape)}, {meaning}: "
            "nothing is broadcast, so expand or index it first"
        )


def require_per_action(name: str, tensor: Tensor) -> torch.Size:
    """Return the leading shape of a tensor [..., A]; it has at least one dimension."""
    if tensor.dim() < 2 or tensor.shape[-1] < 1:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}; expected [..., A] with A >= 1 actions last "
            "and at least one dimension before it"
        )
    return tensor.shape[:-1]


def require_integer(name: str, tensor: Tensor) -> None:
    """Refuse floating, complex and boolean tensors where an index is needed."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(
            f"{name} has dtype {tensor.dtype}; expected an integer dtype: "
            "pass action indices, for example actions.long()"
        )


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Refuse numbers outside [low, high]; NaN is outside."""
    if not low <= value <= high:
        top = "infinity (no clipping)" if math.isinf(high) else f"{high:g}"
        raise ValueError(f"{name} is {value}; expected a number from {low:g} to {top}")


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype in which sums over time are kept: the widest given, at least float32.

    A half-precision sum over tens of rewards loses the small ones.
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
