"""How a gradient becomes the next version of the parameters, wherever that happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

Info = npt.NDArray[np.float32]


class DivergenceError(RuntimeError):
    """A gradient holds NaN or infinity: nothing that follows from it can be trusted."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a learner would like all learners to do after this update."""

    save: bool = False
    stop: bool = False


@dataclass(frozen=True, slots=True)
class Length:
    """When a run is complete.

    Args:
        steps: agent decisions, of all learners.
        rounds: updates of a learner that belong together (lock-step): a run ends behind the last.
    """

    steps: int
    rounds: int = 1

    def reached(self, steps: int, rounds: int) -> bool:
        """Whether so many steps and updates complete the run."""
        return steps >= self.steps and rounds % self.rounds == 0


class Updating(Protocol):
    """Where gradients are applied."""

    infos: npt.NDArray[np.float32]
    """float32 ``[rows, width]``: what learners handed in, as far as it came with the last update.
    """
    agreed: Wish
    """What all learners agreed on with the last update."""

    @property
    def version(self) -> int:
        """Updates applied to the parameters as this learner has them, by whomever."""
        ...

    @property
    def rounds(self) -> int:
        """Updates that this learner took part in, earlier runs included."""
        ...

    @property
    def steps(self) -> int:
        """Agent decisions consumed so far, by all learners, as far as this one knows."""
        ...

    @property
    def over(self) -> bool:
        """Whether the run is complete. All learners see it after the same save."""
        ...

    @property
    def gradient_norm(self) -> float:
        """Global norm of the last gradient, before clipping."""
        ...

    def pull(self) -> None:
        """Makes the parameters current; call it before they are used. Waits if need be."""
        ...

    def apply(
        self, gradient: torch.Tensor, info: Info, *, loss: float, steps: int, wish: Wish
    ) -> int:
        """Applies a gradient, or starts to: ``pull`` completes it.

        Args:
            gradient: float32 ``[size]``, summed over this learner's batch; may be overwritten, and
                must not be written before ``pull``.
            info: float32 ``[width]`` of numbers that the first learner should see; they travel with
                the gradient, or beside it.
            loss: whose gradient it is, to tell outliers.
            steps: agent decisions that this learner consumed since the last call.
            wish: travels in the same way.

        Returns:
            The version as far as this learner knows it.

        Raises:
            DivergenceError: for a gradient that is not finite, where that is not merely dropped.
        """
        ...

    def skip(self, info: Info, *, steps: int, wish: Wish) -> int:
        """As ``apply``, without a gradient: experience came, but not enough to learn from."""
        ...

    def gauges(self) -> dict[str, float]:
        """Numbers of its own to log, since the last call."""
        ...

    def settle(self) -> None:
        """Leaves in ``infos`` what came after the last update. When all learners have met."""
        ...

    def forget(self) -> None:
        """Makes the next ``pull`` ask again: after a save, all learners go on from the same."""
        ...

    def keepsakes(self) -> dict[str, Any]:
        """What a checkpoint needs of this learner alone; goes to ``restore_keepsakes``."""
        ...

    def state(self) -> dict[str, Any]:
        """Parameters and optimiser slots by name, and counters. Between updates of all learners."""
        ...

    def start(self) -> None:
        """Goes on from the network as it was made: where nothing is restored.

        Exactly one of this and ``restore`` is called, once, before the first ``pull``, when all
        ranks have met: parameter servers listen then.
        """
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``. Called instead of ``start``, see there."""
        ...

    def restore_keepsakes(self, kept: Mapping[str, Any]) -> None:
        """Takes its own out of what this learner kept.

        Called at most once, before ``restore``; it must not need other ranks, which may still load.

        Raises:
            KeyError, TypeError, ValueError: for a damaged part.
        """
        ...

    def close(self) -> None:
        """Gives back what MPI holds. Call it after the last update."""
        ...
