"""Gradients applied in the learner's own rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from drl_mpi.nets.flat import FlatParameters
from drl_mpi.updating.optimizers import Optimizer, clip_by_global_norm
from drl_mpi.updating.protocol import DivergenceError, Info, Length, Wish


class LocalUpdating:
    """One learner, one optimiser.

    Args:
        flat: the network's parameters.
        optimizer: works on the flat vector, in place.
        learning_rate: steps consumed before an update -> its learning rate.
        max_norm: global norm to which gradients are clipped.
        length: when the run is complete.
    """

    def __init__(
        self,
        flat: FlatParameters,
        optimizer: Optimizer,
        learning_rate: Callable[[int], float],
        max_norm: float,
        length: Length,
    ) -> None:
        self.flat = flat
        self.infos = np.zeros((1, 0), dtype=np.float32)
        self.agreed = Wish()
        self._version = self._steps = 0
        self._gradient_norm = 0.0
        self._optimizer = optimizer
        self._learning_rate = learning_rate
        self._max_norm = max_norm
        self._length = length

    @property
    def version(self) -> int:
        """See ``Updating.version``."""
        return self._version

    @property
    def rounds(self) -> int:
        """See ``Updating.rounds``."""
        return self._version

    @property
    def steps(self) -> int:
        """See ``Updating.steps``."""
        return self._steps

    @property
    def over(self) -> bool:
        """See ``Updating.over``."""
        return self._length.reached(self._steps, self._version)

    @property
    def gradient_norm(self) -> float:
        """See ``Updating.gradient_norm``."""
        return self._gradient_norm

    def pull(self) -> None:
        """See ``Updating.pull``."""

    def apply(
        self, gradient: torch.Tensor, info: Info, *, loss: float, steps: int, wish: Wish
    ) -> int:
        """See ``Updating.apply``."""
        self._gradient_norm = clip_by_global_norm(gradient, self._max_norm)
        if not np.isfinite(self.gradient_norm):
            raise DivergenceError(
                f"the gradient of update {self.version} has norm {self.gradient_norm} (loss "
                f"{loss}); lower --learning-rate, or look for rewards or observations that are not "
                "finite"
            )
        self._optimizer.step(self.flat.vector, gradient, self._learning_rate(self._steps))
        self._version += 1
        return self.skip(info, steps=steps, wish=wish)

    def skip(self, info: Info, *, steps: int, wish: Wish) -> int:
        """See ``Updating.skip``."""
        self.infos = info[np.newaxis]
        self.agreed = wish
        self._steps += steps
        return self._version

    def gauges(self) -> dict[str, float]:
        """The learning rate."""
        return {"learning_rate": self._learning_rate(self._steps)}

    def settle(self) -> None:
        """See ``Updating.settle``: every update brings all of them."""
        self.infos = self.infos[:0]

    def forget(self) -> None:
        """See ``Updating.forget``."""

    def keepsakes(self) -> dict[str, Any]:
        """Nothing: all learners hold the same."""
        return {}

    def state(self) -> dict[str, Any]:
        """``model/NAME``, ``optimizer/SLOT/NAME``, and the counters."""
        return {
            "model": by_name(self.flat, self.flat.vector),
            "optimizer": {
                slot: by_name(self.flat, vector) for slot, vector in self._optimizer.slots().items()
            },
            "counters": {
                "version": self._version,
                "rounds": self._version,
                "steps": self._steps,
                "optimizer_steps": self._optimizer.steps,
            },
        }

    def start(self) -> None:
        """See ``Updating.start``."""

    def restore_keepsakes(self, kept: Mapping[str, Any]) -> None:
        """See ``Updating.restore_keepsakes``."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        self.flat.vector.copy_(joined(self.flat, state["model"]))
        self._optimizer.restore(
            {slot: joined(self.flat, arrays) for slot, arrays in state["optimizer"].items()},
            int(state["counters"]["optimizer_steps"]),
        )
        self._version = int(state["counters"]["version"])
        self._steps = int(state["counters"]["steps"])

    def close(self) -> None:
        """See ``Updating.close``."""


def by_name(flat: FlatParameters, vector: torch.Tensor) -> dict[str, npt.NDArray[np.float32]]:
    """A flat vector as a checkpoint has it: parameter name -> array."""
    return {name: view.cpu().numpy() for name, view in flat.split(vector).items()}


def joined(flat: FlatParameters, arrays: Mapping[str, npt.NDArray[np.float32]]) -> torch.Tensor:
    """The reverse of ``by_name``: float32 ``[size]``."""
    return flat.join({name: torch.from_numpy(array) for name, array in arrays.items()})
