"""All parameters of a module in one vector: what MPI sends and an optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class FlatParameters:
    """Re-homes a module's parameters and gradients as views into two flat vectors.

    Make it after the module is on its device: `module.to(...)` would cut the views.
    Backward passes add into `gradient`; writing to `vector` changes the module.
    MKL's last bits depend on the address of a weight modulo 64: two flat modules agree
    bit for bit, a flat one and one that is not may differ by a rounding.
    Raises ValueError if a parameter is not float32.
    """

    vector: Tensor
    """[P] float32, the parameters in the order of `module.named_parameters()`."""
    gradient: Tensor
    """[P] float32, their gradients."""
    names: tuple[str, ...]
    slices: dict[str, tuple[int, tuple[int, ...]]]
    """name -> (offset in the vector, shape)."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = dict(module.named_parameters())
        for name, parameter in self._parameters.items():
            if parameter.dtype != torch.float32:
                raise ValueError(
                    f"parameter {name} is {parameter.dtype}, allowed: torch.float32;"
                    " flatten the training network, not a bf16 copy"
                )
        self.slices = slices_of(module)
        self.names = tuple(self.slices)
        with torch.no_grad():
            self.vector = torch.cat([p.detach().reshape(-1) for p in self._parameters.values()])
        self.gradient = torch.zeros_like(self.vector)
        self._gradients = self.split(self.gradient)
        for name, view in self.split(self.vector).items():
            self._parameters[name].data = view
        self.zero_grad()

    def zero_grad(self) -> None:
        """Zero the gradient; if something replaced a parameter's .grad, undo that."""
        self.gradient.zero_()
        for name, parameter in self._parameters.items():
            if parameter.grad is not self._gradients[name]:
                parameter.grad = self._gradients[name]

    def load(self, vector: Tensor | NDArray[np.float32]) -> None:
        """Copy a whole parameter vector [P] into the module."""
        source = torch.as_tensor(vector)
        if source.shape != self.vector.shape:
            raise ValueError(
                f"the vector has shape {tuple(source.shape)}, allowed: {tuple(self.vector.shape)};"
                " is it from another network?"
            )
        self.vector.copy_(source)

    def adopt(self, vector: Tensor) -> None:
        """Make a vector [P] float32 of somebody else the parameters, without a copy.

        Nothing is written to it unless the module is trained further.
        """
        if vector.shape != self.vector.shape or vector.dtype != torch.float32:
            raise ValueError(
                f"the vector is {vector.dtype} {tuple(vector.shape)}, allowed: torch.float32"
                f" {tuple(self.vector.shape)}; is it from another network?"
            )
        self.vector = vector
        for name, view in self.split(vector).items():
            self._parameters[name].data = view

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Views [shape] by name into any flat vector [P] (parameters, gradient, a slot)."""
        return {
            name: vector[offset : offset + _size(shape)].view(shape)
            for name, (offset, shape) in self.slices.items()
        }

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `split`: a new vector [P] on the parameters' device.

        Raises ValueError if names or shapes are not this module's.
        """
        if set(tensors) != set(self.slices):
            wrong = sorted(set(tensors) ^ set(self.slices))
            raise ValueError(f"parameter names differ in {wrong}; is it from another network?")
        vector = torch.empty_like(self.vector)
        for name, view in self.split(vector).items():
            if tuple(tensors[name].shape) != tuple(view.shape):
                raise ValueError(
                    f"parameter {name} has shape {tuple(tensors[name].shape)},"
                    f" allowed: {tuple(view.shape)}; is it from another network?"
                )
            view.copy_(tensors[name])
        return vector

    @property
    def vector_numpy(self) -> NDArray[Any]:
        """The memory of `vector` as a NumPy array (CPU only), for MPI without a copy."""
        return self.vector.numpy()

    @property
    def gradient_numpy(self) -> NDArray[Any]:
        """The memory of `gradient` as a NumPy array (CPU only)."""
        return self.gradient.numpy()


def slices_of(module: nn.Module) -> dict[str, tuple[int, tuple[int, ...]]]:
    """name -> (offset, shape) of each parameter in the module's flat vector."""
    slices: dict[str, tuple[int, tuple[int, ...]]] = {}
    offset = 0
    for name, parameter in module.named_parameters():
        slices[name] = (offset, tuple(parameter.shape))
        offset += parameter.numel()
    return slices


def load_flat(module: nn.Module, vector: Tensor | NDArray[np.float32]) -> None:
    """Copy a flat float32 vector [P] into a module of any dtypes, casting in the same pass."""
    source = torch.as_tensor(vector)
    parameters = list(module.parameters())
    total = sum(p.numel() for p in parameters)
    if source.shape != (total,):
        raise ValueError(
            f"the vector has shape {tuple(source.shape)}, allowed: {(total,)};"
            " is it from another network?"
        )
    with torch.no_grad():
        offset = 0
        for parameter in parameters:
            size = parameter.numel()
            parameter.copy_(source[offset : offset + size].view(parameter.shape))
            offset += size


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
