"""Networks by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from drl_mpi.nets.heads import DuelingHead, PolicyValueHead, QHead
from drl_mpi.nets.layers import Conv, Linear
from drl_mpi.nets.network import Core, Network
from drl_mpi.nets.threads import one_thread
from drl_mpi.nets.torsos import MLP, Deep, Plain, Torso

SHALLOW = [(16, 8, 4), (32, 4, 2)]
"""(outputs, kernel, stride): Mnih et al. 2013, and "shallow" in IMPALA and A3C."""
NATURE = [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
"""Mnih et al. 2015."""
SMALLEST = {"shallow": 20, "nature": 36, "deep": 1}
"""The smallest height and width in pixels that leaves a pixel after the last layer."""

NAMES = ("shallow", "nature", "deep", "mlp")
HEADS = ("policy_value", "q", "dueling")
CORES = (None, "lstm")


def make(
    name: str,
    observation_shape: Sequence[int],
    num_actions: int,
    *,
    head: str = "policy_value",
    core: str | None = None,
    seed: int | None = None,
) -> Network:
    """Build a network.

    name: shallow, nature or deep for images (channels, height, width); mlp for vectors.
    seed: of the initial weights, which then do not touch torch's global generator and
    do not depend on the number of threads; None draws one from it. Weights are orthogonal
    (gain sqrt 2 in the body, 0.01 for the policy, 1 for values), biases zero.
    Raises ValueError for an unknown choice or a net that cannot take this observation.
    """
    shape = tuple(int(n) for n in observation_shape)
    _choice("net", name, NAMES)
    _choice("head", head, HEADS)
    _choice("core", core, CORES)
    if num_actions < 1:
        raise ValueError(
            f"num_actions is {num_actions}, allowed: 1 or more; pass the number of actions"
        )
    _fits(name, shape)

    streams = 2 if head == "dueling" and core is None else 1
    torso = _torso(name, shape, streams)
    recurrent = None if core is None else Core(torso.features)
    features = torso.features if recurrent is None else recurrent.width
    net = Network(torso, recurrent, _head(head, features, num_actions, recurrent is not None))

    generator = torch.Generator()
    generator.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
    with one_thread():
        for module in net.modules():
            if isinstance(module, Conv | Linear | Core):
                module.initialise(generator)
    return net


def default_net(observation_shape: Sequence[int]) -> str:
    """The name of a net that takes this observation: the smallest one that fits."""
    shape = tuple(observation_shape)
    if len(shape) == 1:
        return "mlp"
    if len(shape) == 3:
        return "shallow" if min(shape[1:]) >= SMALLEST["shallow"] else "deep"
    raise ValueError(
        f"observation shape is {shape}, allowed: (values,) or (channels, height, width);"
        " flatten the observation in the environment"
    )


def _torso(name: str, shape: tuple[int, ...], streams: int) -> Torso:
    if name == "mlp":
        return MLP(shape[0], streams)
    image = (shape[0], shape[1], shape[2])
    if name == "shallow":
        return Plain(image, SHALLOW, 256 * streams)
    if name == "nature":
        return Plain(image, NATURE, 512 * streams)
    return Deep(image, 256 * streams)


def _head(
    head: str, features: int, num_actions: int, after_core: bool
) -> PolicyValueHead | QHead | DuelingHead:
    if head == "policy_value":
        return PolicyValueHead(features, num_actions)
    if head == "q":
        return QHead(features, num_actions)
    return DuelingHead(features, num_actions, hidden=features if after_core else 0)


def _choice(what: str, value: str | None, allowed: Sequence[str | None]) -> None:
    if value not in allowed:
        names = ", ".join(str(a) for a in allowed)
        raise ValueError(f"{what} is {value!r}, allowed: {names}; choose one of them")


def _fits(name: str, shape: tuple[int, ...]) -> None:
    fit = default_net(shape)
    if min(shape) < 1:
        raise ValueError(
            f"observation shape is {shape}, allowed: sizes of 1 or more; check the environment"
        )
    if name == "mlp":
        if len(shape) != 1:
            raise ValueError(
                f"net is 'mlp' but the observation shape is {shape}, allowed: (values,);"
                f" use net {fit!r}"
            )
        return
    if len(shape) != 3:
        raise ValueError(
            f"net is {name!r} but the observation shape is {shape},"
            f" allowed: (channels, height, width); use net {fit!r}"
        )
    least = SMALLEST[name]
    if min(shape[1:]) < least:
        raise ValueError(
            f"net is {name!r} but the observation shape is {shape},"
            f" allowed: (channels, height, width) of at least {least}x{least} pixels;"
            f" use net {fit!r}, or put channels first"
        )
