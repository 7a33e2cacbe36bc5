"""The learner's batch for Q-learning: B single transitions, as torch tensors."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch

from drl_mpi.envs import EnvSpec
from drl_mpi.experience.statistics import Statistics


class TransitionBatch(Statistics):
    """Preallocated tensors of one update, which a replay's ``sample`` fills.

    With n-step transitions (Sutton 1988; Hessel et al. 2018, section "Multi-step learning") the
    target of a transition is ``rewards + discounts * max_a Q(next_observations, a)``.

    Args:
        spec: the environment.
        size: B, transitions per update.
        device: where ``ready`` puts the tensors.

    Raises:
        ValueError: for a size below 1.

    Attributes:
        observations: frame dtype ``[B, *observation_shape]``.
        actions: int64 ``[B]``.
        rewards: float32 ``[B]``, discounted sum of the n rewards.
        discounts: float32 ``[B]``, product of the n discounts; 0 where the episode terminated
            within.
        next_observations: frame dtype ``[B, *observation_shape]``; of no meaning where the
            discount is 0.
        weights: float32 ``[B]``, importance weights in (0, 1]; ones from a uniform replay.
        errors: float32 ``[B]``, absolute TD errors, which the loss writes; ``None`` before.
        stacks, next_stacks: NumPy views ``[B, stack, *frame_shape]`` of the observations on the
            host, for the replay to fill.
        indices: NumPy int64 ``[B]``, slots in the replay.
        generations: NumPy int64 ``[B]``, numbers of the rows in their lanes, counted from the
            lane's first: with ``indices`` they tell whether a slot was overwritten since.
        ages: NumPy int64 ``[B]``, rows that were added to the sample's lane after it.
    """

    errors: torch.Tensor | None

    def __init__(self, spec: EnvSpec, size: int, device: torch.device | None = None) -> None:
        if size < 1:
            raise ValueError(f"batch size is {size} transitions; it must be at least 1")
        super().__init__()
        self._device = device or torch.device("cpu")
        self.spec = spec
        dtype = getattr(torch, spec.frame_dtype)
        self.observations = torch.zeros((size, *spec.observation_shape), dtype=dtype)
        self.actions = torch.zeros(size, dtype=torch.int64)
        self.rewards = torch.zeros(size)
        self.discounts = torch.zeros(size)
        self.next_observations = torch.zeros_like(self.observations)
        self.weights = torch.ones(size)
        stacked = (size, spec.stack, *spec.frame_shape)
        self.stacks = self.observations.numpy().reshape(stacked)
        self.next_stacks = self.next_observations.numpy().reshape(stacked)
        self.indices: npt.NDArray[np.int64] = np.zeros(size, dtype=np.int64)
        self.generations: npt.NDArray[np.int64] = np.zeros(size, dtype=np.int64)
        self.ages: npt.NDArray[np.int64] = np.zeros(size, dtype=np.int64)

    def __len__(self) -> int:
        """B."""
        return len(self.indices)

    @property
    def mean_age(self) -> float:
        """Mean of ``ages``, in rows (steps of one environment)."""
        return float(self.ages.mean())

    def begin(self) -> None:
        """Forgets the previous update's statistics and errors."""
        super().begin()
        self.errors = None

    def ready(self) -> TransitionBatch:
        """This batch, with its tensors on the device; itself where that is the CPU."""
        if self._device.type == "cpu":
            return self
        there = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(there, name, value.to(self._device))
        return there
