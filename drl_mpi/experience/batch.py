"""The learner's batch: B environments' unrolls side by side, as torch tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from drl_mpi.envs import build_stacks
from drl_mpi.experience.statistics import Statistics
from drl_mpi.experience.unroll import UnrollShape

Fields = Mapping[str, npt.NDArray[Any]]


class Batch(Statistics):
    """Preallocated tensors of one update; time-major.

    Args:
        shape: the unroll's shape; its ``envs`` is B, the batch's width.
        device: where ``ready`` puts the tensors.

    Attributes:
        observations: frame dtype ``[T+1, B, *observation_shape]``.
        firsts: bool ``[T+1, B]``, rows that begin an episode.
        actions: int64 ``[T, B]``.
        rewards, discounts: float32 ``[T, B]``.
        log_probs: float32 ``[T, B]``, of the behaviour policy (mu).
        valid: bool ``[T, B]``, false for transitions into a reset: nothing was decided there, and
            what follows is another game.
        state: float32 ``[parts, B, hidden]`` before row 0, or ``None`` without a core.
    """

    def __init__(self, shape: UnrollShape, device: torch.device | None = None) -> None:
        super().__init__()
        self._device = device or torch.device("cpu")
        t, b = shape.length, shape.envs
        self.shape = shape
        dtype = getattr(torch, shape.spec.frame_dtype)
        self._stacks = torch.empty(
            (t + 1, b, shape.spec.stack, *shape.spec.frame_shape), dtype=dtype
        )
        self.observations = self._stacks.view(t + 1, b, *shape.spec.observation_shape)
        self.firsts = torch.empty((t + 1, b), dtype=torch.bool)
        self.actions = torch.empty((t, b), dtype=torch.int64)
        self.rewards = torch.empty((t, b), dtype=torch.float32)
        self.discounts = torch.empty((t, b), dtype=torch.float32)
        self.log_probs = torch.empty((t, b), dtype=torch.float32)
        self.valid = torch.empty((t, b), dtype=torch.bool)
        self.state = (
            torch.empty((shape.state_shape[0], b, *shape.state_shape[1:]))
            if shape.state_shape
            else None
        )

    def ready(self) -> Batch:
        """This batch, with its tensors on the device; itself where that is the CPU."""
        if self._device.type == "cpu":
            return self
        there = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor) and name != "_stacks":  # observations' own memory
                setattr(there, name, value.to(self._device))
        return there

    def write(self, column: int, fields: Fields) -> None:
        """Copies an unroll's transitions into the columns from ``column`` on.

        Args:
            column: first column.
            fields: the per-environment fields of ``UnrollShape.record``, ``[rows, n, ...]``.
        """
        n = fields["actions"].shape[1]
        columns = slice(column, column + n)
        build_stacks(
            fields["frames"],
            fields["resets"],
            self.shape.spec.stack,
            out=self._stacks.numpy()[:, columns],
        )
        for name in ("firsts", "actions", "rewards", "discounts", "log_probs"):
            getattr(self, name).numpy()[:, columns] = fields[name]
        t = self.shape.length
        np.logical_not(fields["resets"][-t:], out=self.valid.numpy()[:, columns])
        if self.state is not None:
            self.state.numpy()[:, columns] = fields["state"]
