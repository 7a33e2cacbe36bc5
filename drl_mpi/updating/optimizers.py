"""Optimisers over one flat vector, in place.

The whole network is one float32 vector (`drl_mpi.nets.FlatParameters`), and so is
every slot of an optimiser: a checkpoint or a message needs no list of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam


class Optimizer(Protocol):
    """How a gradient changes the parameters."""

    steps: int
    """Calls of `step` so far, across restores."""

    def step(self, parameters: Tensor, gradient: Tensor, lr: float) -> None:
        """Apply one gradient: both [P] float32 on one device; changes `parameters` only."""
        ...

    def slots(self) -> dict[str, Tensor]:
        """The optimiser's memory by name, each [P] float32 (not copies); empty before step 1."""
        ...

    def restore(self, slots: Mapping[str, Tensor], steps: int) -> None:
        """Go on from `slots` (copied) and `steps`, bit for bit.

        Raises ValueError if the slots are not this optimiser's.
        """
        ...


class _Slots:
    """What the optimisers share: slots that appear with the first step."""

    initial: dict[str, float]

    def __init__(self) -> None:
        self.steps = 0
        self._slots: dict[str, Tensor] = {}

    def slots(self) -> dict[str, Tensor]:
        return dict(self._slots)

    def restore(self, slots: Mapping[str, Tensor], steps: int) -> None:
        if set(slots) != set(self.initial) and not (steps == 0 and not slots):
            raise ValueError(
                f"slots are {sorted(slots)} after {steps} steps, allowed: {sorted(self.initial)};"
                " is the checkpoint from another optimiser?"
            )
        self._slots = {
            name: torch.as_tensor(slot).to(torch.float32, copy=True) for name, slot in slots.items()
        }
        self.steps = steps

    def _get(self, name: str, like: Tensor) -> Tensor:
        slot = self._slots.get(name)
        if slot is None:
            slot = torch.full_like(like, self.initial[name])
        elif slot.shape != like.shape:
            raise ValueError(
                f"slot {name} has shape {tuple(slot.shape)}, allowed: {tuple(like.shape)};"
                " is the checkpoint from another network?"
            )
        self._slots[name] = slot = slot.to(like.device)  # a checkpoint loads on the CPU
        return slot


class RMSProp(_Slots):
    """RMSProp with eps inside the root (Mnih et al. 2016, equation S3; IMPALA, table G.1).

        mean_square = decay mean_square + (1 - decay) g^2
        parameters -= lr g / sqrt(mean_square + eps)

    With momentum, the right-hand side first enters velocity = momentum velocity + it.
    initial_mean_square: 0 as in the papers' equations; TensorFlow 1, which IMPALA's
    own code used, starts from 1, which makes the first hundred or so steps smaller.
    """

    def __init__(
        self,
        decay: float = 0.99,
        eps: float = 0.01,
        momentum: float = 0.0,
        initial_mean_square: float = 0.0,
    ) -> None:
        super().__init__()
        _check("decay", decay, 0.0 <= decay < 1.0, "0 <= decay < 1")
        _check("eps", eps, 0.0 < eps < math.inf, "above 0")
        _check("momentum", momentum, 0.0 <= momentum < 1.0, "0 <= momentum < 1")
        _check("initial_mean_square", initial_mean_square, initial_mean_square >= 0.0, "0 or more")
        self.decay, self.eps, self.momentum = decay, eps, momentum
        self.initial = {"mean_square": initial_mean_square}
        if momentum:
            self.initial["velocity"] = 0.0

    @torch.no_grad()
    def step(self, parameters: Tensor, gradient: Tensor, lr: float) -> None:
        mean_square = self._get("mean_square", parameters)
        mean_square.mul_(self.decay).addcmul_(gradient, gradient, value=1.0 - self.decay)
        root = (mean_square + self.eps).sqrt_()
        if self.momentum:
            velocity = self._get("velocity", parameters)
            velocity.mul_(self.momentum).addcdiv_(gradient, root, value=lr)
            parameters.sub_(velocity)
        else:
            parameters.addcdiv_(gradient, root, value=-lr)
        self.steps += 1


class Adam(_Slots):
    """Adam (Kingma & Ba 2015, algorithm 1), in torch's fused kernel.

    One pass over memory: 1.2 ms for the 1.7M parameters of the nature net on one core,
    where one vector operation after another took 2.5 ms.
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__()
        _check("beta1", beta1, 0.0 <= beta1 < 1.0, "0 <= beta1 < 1")
        _check("beta2", beta2, 0.0 <= beta2 < 1.0, "0 <= beta2 < 1")
        _check("eps", eps, 0.0 < eps < math.inf, "above 0")
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.initial = {"mean": 0.0, "mean_square": 0.0}

    @torch.no_grad()
    def step(self, parameters: Tensor, gradient: Tensor, lr: float) -> None:
        count = torch.tensor(float(self.steps), device=parameters.device)
        adam(
            [parameters],
            [gradient],
            [self._get("mean", parameters)],
            [self._get("mean_square", parameters)],
            [],
            [count],
            fused=True,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=lr,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )
        self.steps += 1


def make_optimizer(name: str, **settings: Any) -> RMSProp | Adam:
    """ "rmsprop" or "adam" with the settings of that class, for instance eps=1e-4.

    Raises ValueError for an unknown name or setting.
    """
    makers: dict[str, type[RMSProp] | type[Adam]] = {"rmsprop": RMSProp, "adam": Adam}
    if name not in makers:
        raise ValueError(f"optimizer is {name!r}, allowed: {', '.join(makers)}; choose one of them")
    try:
        return makers[name](**settings)
    except TypeError as error:
        raise ValueError(f"optimizer {name!r} cannot take {settings}: {error}") from None


def clip_by_global_norm(gradient: Tensor, max_norm: float) -> float:
    """Scale `gradient` [P] in place so that its L2 norm is at most `max_norm`.

    Returns the norm before scaling. A norm that is not finite is returned as it is,
    with the gradient untouched: what to do about it is the caller's choice.
    """
    norm = float(torch.linalg.vector_norm(gradient))
    if not math.isfinite(norm):  # squares of finite float32 numbers may overflow
        norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    if math.isfinite(norm) and norm > max_norm:
        gradient.mul_(max_norm / norm)
    return norm


def _check(name: str, value: float, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name} is {value}, allowed: {allowed}; change it")
