"""Gradients applied in the learner's own rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from drl_mpi.nets.flat import FlatParameters
from drl_mpi.updating.optimizers import Optimizer, clip_by_global_norm

Info = npt.NDArray[np.float32]


class DivergenceError(RuntimeError):
    """A gradient holds NaN or infinity: nothing that follows from it can be trusted."""


class Updating(Protocol):
    """How a gradient becomes the next version of the parameters."""

    infos: npt.NDArray[np.float32]
    """float32 ``[learners, width]``: what each learner handed in with the last update."""

    @property
    def version(self) -> int:
        """Updates applied so far."""
        ...

    @property
    def gradient_norm(self) -> float:
        """Global norm of the last gradient, before clipping."""
        ...

    def apply(self, gradient: torch.Tensor, info: Info) -> int:
        """Applies a gradient.

        Args:
            gradient: float32 ``[size]``, summed over this learner's batch; may be overwritten.
            info: float32 ``[width]`` of numbers that all learners should see; they travel with
                the gradient, so that agreeing on anything costs no message of its own.

        Returns:
            The new version.

        Raises:
            DivergenceError: for a gradient that is not finite.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Parameters and optimiser slots by name, and the version."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        ...


class LocalUpdating:
    """One learner, one optimiser.

    Args:
        flat: the network's parameters.
        optimizer: works on the flat vector, in place.
        learning_rate: version -> learning rate of the update that makes the next one.
        max_norm: global norm to which gradients are clipped.
    """

    def __init__(
        self,
        flat: FlatParameters,
        optimizer: Optimizer,
        learning_rate: Callable[[int], float],
        max_norm: float,
    ) -> None:
        self._version = 0
        self._gradient_norm = 0.0
        self.infos = np.zeros((1, 0), dtype=np.float32)
        self.flat = flat
        self._optimizer = optimizer
        self._learning_rate = learning_rate
        self._max_norm = max_norm

    @property
    def version(self) -> int:
        """See ``Updating.version``."""
        return self._version

    @property
    def gradient_norm(self) -> float:
        """See ``Updating.gradient_norm``."""
        return self._gradient_norm

    def apply(self, gradient: torch.Tensor, info: Info) -> int:
        """See ``Updating.apply``."""
        self.infos = info[np.newaxis]
        self._gradient_norm = clip_by_global_norm(gradient, self._max_norm)
        if not np.isfinite(self.gradient_norm):
            raise DivergenceError(
                f"the gradient of update {self.version} has norm {self.gradient_norm}; lower "
                "--learning-rate, or look for rewards or observations that are not finite"
            )
        rate = self._learning_rate(self.version)
        self._optimizer.step(self.flat.vector, gradient, rate)
        self._version += 1
        return self.version

    def state(self) -> dict[str, Any]:
        """``model/NAME``, ``optimizer/SLOT/NAME``, and the counts of updates."""
        return {
            "model": self._by_name(self.flat.vector),
            "optimizer": {
                slot: self._by_name(vector) for slot, vector in self._optimizer.slots().items()
            },
            "counters": {"version": self.version, "optimizer_steps": self._optimizer.steps},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        self.flat.vector.copy_(self._joined(state["model"]))
        self._optimizer.restore(
            {slot: self._joined(arrays) for slot, arrays in state["optimizer"].items()},
            int(state["counters"]["optimizer_steps"]),
        )
        self._version = int(state["counters"]["version"])

    def _by_name(self, vector: torch.Tensor) -> dict[str, npt.NDArray[np.float32]]:
        return {name: view.cpu().numpy() for name, view in self.flat.split(vector).items()}

    def _joined(self, arrays: Mapping[str, npt.NDArray[np.float32]]) -> torch.Tensor:
        return self.flat.join({name: torch.from_numpy(a) for name, a in arrays.items()})
