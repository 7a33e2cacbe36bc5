"""From a network's output to actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from drl_mpi.acting.exploration import epsilon_greedy
from drl_mpi.nets.heads import Output, PolicyValue, QValues

Chosen = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


class Choose(Protocol):
    """A rule of choice."""

    def __call__(
        self, output: Output, version: int, steps: int, rng: np.random.Generator
    ) -> Chosen:
        """Actions int64 ``[n]`` and their log-probabilities float32 ``[n]``.

        Args:
            output: of the network, on the CPU, with leading dimensions ``[1, n]``.
            version: of the parameters behind it.
            steps: agent decisions consumed by all learners when that version was made.
            rng: decides.
        """
        ...


def choose_by_softmax(
    output: Output,
    version: int,  # noqa: ARG001 (Choose's signature)
    steps: int,  # noqa: ARG001
    rng: np.random.Generator,
) -> Chosen:
    """Samples from the policy."""
    assert isinstance(output, PolicyValue)
    return sample(output.logits[0].numpy(), rng)


class ChooseEpsilonGreedily:
    """The action of largest value, or with probability epsilon any.

    Args:
        epsilon: (version, steps) -> epsilon, one number or float ``[n]``.
    """

    def __init__(self, epsilon: Callable[[int, int], float | npt.NDArray[np.float64]]) -> None:
        self._epsilon = epsilon

    def __call__(
        self, output: Output, version: int, steps: int, rng: np.random.Generator
    ) -> Chosen:
        """See ``Choose``."""
        assert isinstance(output, QValues)
        return epsilon_greedy(output.q[0].numpy(), self._epsilon(version, steps), rng)


def sample(logits: npt.NDArray[np.float32], rng: np.random.Generator) -> Chosen:
    """Draws from softmax policies by the Gumbel-max method.

    Args:
        logits: float32 ``[n, actions]``.
        rng: one uniform number per logit is drawn.

    Returns:
        Actions int64 ``[n]`` and their log-probabilities float32 ``[n]``.
    """
    uniform: npt.NDArray[Any] = rng.random(logits.shape)
    gumbel = -np.log(-np.log(np.maximum(uniform, np.finfo(np.float64).tiny)))
    actions = np.argmax(logits + gumbel, axis=-1)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_z = np.log(np.exp(shifted).sum(axis=-1))
    chosen = np.take_along_axis(shifted, actions[:, np.newaxis], axis=-1)[:, 0]
    return actions, (chosen - log_z).astype(np.float32)
