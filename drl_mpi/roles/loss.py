"""What a learner minimises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import torch

from drl_mpi.experience.statistics import Statistics

B_contra = TypeVar("B_contra", bound=Statistics, contravariant=True)


class Loss(Protocol[B_contra]):
    """What is minimised."""

    def prepare(self, version: int) -> None:
        """Called before each gradient, when the parameters are those of ``version``."""
        ...

    def __call__(self, batch: B_contra) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The scalar to differentiate, and detached scalars to log."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to go on; empty for a pure function."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        ...
