"""Actions chosen in the actor's own rank, by a copy of the network.

For networks of a few million parameters this beats asking a central predictor: observations are
larger than the work that they cause.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from drl_mpi.comm.parameters import ParameterSubscriber, Published
from drl_mpi.comm.poller import Poller
from drl_mpi.nets import Network, inference_copy, load_flat
from drl_mpi.nets.heads import PolicyValue


@dataclass(frozen=True, slots=True)
class Choice:
    """What is known beside the actions.

    Attributes:
        log_probs: float32 ``[n]``, of the chosen actions under the policy that chose them (mu).
        state: float32 ``[parts, n, hidden]`` after this row, or ``None`` without a core.
    """

    log_probs: npt.NDArray[np.float32]
    state: npt.NDArray[np.float32] | None


class Acting(Protocol):
    """How actions are chosen."""

    @property
    def version(self) -> int:
        """Parameter version that chooses at present."""
        ...

    @property
    def stopped(self) -> bool:
        """Whether the learner has ended the run: no more actions are wanted."""
        ...

    def refresh(self, version: int | None = None) -> bool:
        """Takes up the newest parameters; called at the start of an unroll only.

        Args:
            version: wait for exactly this version (lock-step) instead of taking what is there.

        Returns:
            False when the learner has ended the run.
        """
        ...

    def close(self) -> None:
        """Gives back what MPI holds. Call it at the end of the run."""
        ...

    def act(
        self,
        observations: npt.NDArray[np.generic],
        first: npt.NDArray[np.bool_],
        state: npt.NDArray[np.float32] | None,
    ) -> tuple[npt.NDArray[np.int64], Choice]:
        """Chooses an action for each of n environments.

        Args:
            observations: ``[n, *observation_shape]``.
            first: bool ``[n]``, rows that begin an episode.
            state: float32 ``[parts, n, hidden]`` before this row, or ``None``.
        """
        ...


class LocalActing:
    """Samples from the policy of a network copy.

    Args:
        net: the learner's network, to copy; its precision is kept.
        subscriber: where new parameters come from.
        poller: waits for the first version, and in lock-step for each.
        rng: decides the samples.
    """

    def __init__(
        self,
        net: Network,
        subscriber: ParameterSubscriber,
        poller: Poller,
        rng: np.random.Generator,
    ) -> None:
        self.version = -1
        self.rng = rng
        self._net = inference_copy(net).eval()
        self._subscriber = subscriber
        self._poller = poller

    @property
    def stopped(self) -> bool:
        """See ``Acting.stopped``. Looks for news."""
        self._load(self._subscriber.newest())
        return self._subscriber.stopped

    def refresh(self, version: int | None = None) -> bool:
        """See ``Acting.refresh``."""

        def ready() -> bool | None:
            self._load(self._subscriber.newest())
            if self._subscriber.stopped:
                return False
            due = self.version >= 0 if version is None else self.version >= version
            return True if due else None

        going = self._poller.wait(ready, "parameters from the learner")
        if going and version is not None and self.version != version:
            raise RuntimeError(
                f"got version {self.version} where lock-step needs version {version}"
            )
        return going

    def close(self) -> None:
        """See ``Acting.close``."""
        self._subscriber.close()

    @torch.inference_mode()
    def act(
        self,
        observations: npt.NDArray[np.generic],
        first: npt.NDArray[np.bool_],
        state: npt.NDArray[np.float32] | None,
    ) -> tuple[npt.NDArray[np.int64], Choice]:
        """See ``Acting.act``."""
        output, after = self._net(
            torch.from_numpy(observations).unsqueeze(0),
            torch.from_numpy(first).unsqueeze(0),
            None if state is None else torch.from_numpy(state),
        )
        assert isinstance(output, PolicyValue)
        actions, log_probs = sample(output.logits[0].numpy(), self.rng)
        return actions, Choice(log_probs, None if after is None else after.numpy())

    def _load(self, published: Published | None) -> None:
        if published is not None:
            load_flat(self._net, published.vector)
            self.version = published.version


def sample(
    logits: npt.NDArray[np.float32], rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
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
