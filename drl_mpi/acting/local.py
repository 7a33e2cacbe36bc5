"""Actions chosen in the actor's own rank, by a copy of the network.

For networks of a few million parameters this beats asking a central predictor: observations are
larger than the work that they cause.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from drl_mpi.acting.choosing import Choose
from drl_mpi.acting.parameters import Owner, Parameters
from drl_mpi.comm.parameters import Published
from drl_mpi.comm.poller import Poller
from drl_mpi.nets import Network, inference_copy, load_flat
from drl_mpi.nets.heads import Output


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
    """Acts with a copy of a network.

    Args:
        net: the learner's network, to copy; its precision is kept.
        parameters: where new ones come from.
        poller: waits for the first version, and in lock-step for each.
        choose: from the network's output to actions.
        rng: decides.
    """

    def __init__(
        self,
        net: Network,
        parameters: Parameters,
        poller: Poller,
        choose: Choose,
        rng: np.random.Generator,
    ) -> None:
        self.version = -1
        self._steps = 0
        self._net = inference_copy(net).eval()
        self._parameters = parameters
        self._poller = poller
        self._choose = choose
        self._rng = rng

    @property
    def stopped(self) -> bool:
        """See ``Acting.stopped``. Looks for news."""
        self._load(self._parameters.newest())
        return self._parameters.stopped

    def refresh(self, version: int | None = None) -> bool:
        """See ``Acting.refresh``."""
        self._parameters.begin()

        def ready() -> bool | None:
            self._load(self._parameters.newest())
            if self._parameters.stopped:
                return False
            there = self.version >= (0 if version is None else version)
            return True if there and not self._parameters.due else None

        going = self._poller.wait(ready, "parameters")
        if going and version is not None and self.version != version:
            raise RuntimeError(
                f"got version {self.version} where lock-step needs version {version}"
            )
        return going

    def close(self) -> None:
        """See ``Acting.close``."""
        self._parameters.close()

    def act(
        self,
        observations: npt.NDArray[np.generic],
        first: npt.NDArray[np.bool_],
        state: npt.NDArray[np.float32] | None,
    ) -> tuple[npt.NDArray[np.int64], Choice]:
        """See ``Acting.act``."""
        output, after = infer(self._net, observations, first, state)
        actions, log_probs = self._choose(output, self.version, self._steps, self._rng)
        return actions, Choice(log_probs, after)

    def _load(self, published: Published | None) -> None:
        if published is not None:
            load_flat(self._net, published.vector)
            self.version, self._steps = published.version, published.steps


class SharedActing:
    """Acts in the learner's rank with the learner's own network.

    Args:
        net: of the learner.
        owner: keeps its parameters current.
        choose: from the network's output to actions.
        rng: decides.
    """

    stopped = False

    def __init__(
        self, net: Network, owner: Owner, choose: Choose, rng: np.random.Generator
    ) -> None:
        self._net = net
        self._owner = owner
        self._choose = choose
        self._rng = rng

    @property
    def version(self) -> int:
        """See ``Acting.version``."""
        return self._owner.version

    def refresh(self, version: int | None = None) -> bool:  # noqa: ARG002 (it is always ours)
        """See ``Acting.refresh``."""
        self._owner.pull()
        return True

    def close(self) -> None:
        """See ``Acting.close``."""

    def act(
        self,
        observations: npt.NDArray[np.generic],
        first: npt.NDArray[np.bool_],
        state: npt.NDArray[np.float32] | None,
    ) -> tuple[npt.NDArray[np.int64], Choice]:
        """See ``Acting.act``."""
        output, after = infer(self._net, observations, first, state)
        owner = self._owner
        actions, log_probs = self._choose(output, owner.version, owner.steps, self._rng)
        return actions, Choice(log_probs, after)


@torch.inference_mode()
def infer(
    net: Network,
    observations: npt.NDArray[np.generic],
    first: npt.NDArray[np.bool_],
    state: npt.NDArray[np.float32] | None,
) -> tuple[Output, npt.NDArray[np.float32] | None]:
    """One step of n environments: the output on the CPU, and the recurrent state after it."""
    device = next(net.parameters()).device
    output, after = net(
        torch.from_numpy(observations).unsqueeze(0).to(device),
        torch.from_numpy(first).unsqueeze(0).to(device),
        None if state is None else torch.from_numpy(state).to(device),
    )
    there = type(output)(*(each.cpu() for each in output))
    return there, None if after is None else after.cpu().numpy()
