"""Flat parameters: aliasing, gradients, loading."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from drl_mpi.nets import FlatParameters, Network, load_flat, make, slices_of


def loss(net: Network, x: Tensor) -> Tensor:
    output, _ = net(x, torch.zeros(x.shape[:2], dtype=torch.bool), None)
    total: Tensor = output.logits.square().sum() + output.value.sum()
    return total


def backward(net: Network, x: Tensor) -> None:
    torch.autograd.backward(loss(net, x))


def gradients(net: Network) -> dict[str, Tensor]:
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def small_net(seed: int = 0) -> Network:
    return make("shallow", (1, 20, 20), 3, core="lstm", seed=seed)


def images() -> Tensor:
    return torch.randint(0, 256, (3, 2, 1, 20, 20), dtype=torch.uint8)


def test_everything_is_a_view() -> None:
    net = small_net()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    flat = FlatParameters(net)
    assert flat.vector.is_contiguous()
    assert flat.vector.numel() == flat.gradient.numel() == sum(p.numel() for p in net.parameters())
    assert flat.names == tuple(before)
    assert flat.slices == slices_of(net)
    for name, view in flat.split(flat.vector).items():
        parameter = net.get_parameter(name)
        assert torch.equal(parameter, before[name])
        assert parameter.data_ptr() == view.data_ptr()
    flat.vector_numpy[:] = 2.0
    assert all(bool((p == 2.0).all()) for p in net.parameters())
    flat.gradient.fill_(3.0)
    assert all(p.grad is not None and bool((p.grad == 3.0).all()) for p in net.parameters())
    assert np.shares_memory(flat.gradient_numpy, flat.gradient.numpy())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradient_equals_autograd_without_flattening(precision: str) -> None:
    net, plain, x = small_net(), small_net(), images()
    net.precision = plain.precision = precision
    flat = FlatParameters(net)
    home = flat.gradient.data_ptr()
    for _ in range(2):  # the second pass must not see the first one's gradient
        flat.zero_grad()
        backward(net, x)
    backward(plain, x)
    expected = torch.cat([g.flatten() for g in gradients(plain).values()])
    torch.testing.assert_close(flat.gradient, expected)
    assert flat.gradient.abs().sum() > 0
    assert flat.gradient.data_ptr() == home
    assert torch.equal(flat.join(gradients(net)), flat.gradient)
    backward(net, x)  # accumulates
    torch.testing.assert_close(flat.gradient, 2.0 * expected)


def test_zero_grad_reattaches_what_something_replaced() -> None:
    net, x = small_net(), images()
    flat = FlatParameters(net)
    for parameter in net.parameters():
        parameter.grad = None
    backward(net, x)
    assert not flat.gradient.any()
    flat.zero_grad()
    backward(net, x)
    assert flat.gradient.any()


def test_load_split_join_round_trip() -> None:
    net, other = small_net(0), small_net(1)
    flat, source = FlatParameters(net), FlatParameters(other)
    flat.load(source.vector_numpy)
    x = images()
    assert torch.equal(loss(net, x), loss(other, x))
    assert torch.equal(flat.join(flat.split(flat.vector)), flat.vector)
    third = small_net(2)
    load_flat(third, source.vector)
    assert all(map(torch.equal, third.parameters(), other.parameters()))


def test_what_is_adopted_is_not_copied() -> None:
    net, other = small_net(0), small_net(1)
    flat, x = FlatParameters(net), images()
    own, theirs = flat.vector, FlatParameters(other).vector
    kept, expected = own.clone(), loss(other, x)
    flat.adopt(theirs)
    assert flat.vector is theirs
    for name, view in flat.split(theirs).items():
        assert net.get_parameter(name).data_ptr() == view.data_ptr(), name
    assert torch.equal(loss(net, x), expected)
    theirs.mul_(2.0)  # no copy: who writes to it is seen
    assert torch.equal(loss(net, x), loss(other, x))
    assert not torch.equal(loss(net, x), expected)
    assert torch.equal(own, kept), "what was there before is left as it was"


def test_gradients_land_where_they_did_whatever_is_adopted() -> None:
    net, x = small_net(0), images()
    flat = FlatParameters(net)
    gradient, home = flat.gradient, flat.gradient.data_ptr()
    for seed in (1, 2):
        other = small_net(seed)
        theirs = FlatParameters(other)
        before = theirs.vector.clone()
        flat.adopt(theirs.vector)
        flat.zero_grad()
        backward(net, x)
        theirs.zero_grad()
        backward(other, x)
        assert torch.equal(flat.gradient, theirs.gradient)
        assert flat.gradient.abs().sum() > 0
        assert flat.gradient is gradient
        assert flat.gradient.data_ptr() == home
        assert torch.equal(flat.join(gradients(net)), flat.gradient)
        assert torch.equal(theirs.vector, before), "nothing is written to what was adopted"


def test_parameters_remain_those_that_an_optimizer_or_a_caller_holds() -> None:
    net = small_net(0)
    flat = FlatParameters(net)
    held = dict(net.named_parameters())
    flat.adopt(FlatParameters(small_net(1)).vector)
    assert all(net.get_parameter(name) is parameter for name, parameter in held.items())
    assert all(parameter.requires_grad for parameter in held.values())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda vector: vector[:-1],
        lambda vector: torch.cat([vector, vector[:1]]),
        lambda vector: vector.double(),
        lambda vector: vector[None],
    ],
)
def test_what_is_of_another_network_is_not_adopted(wrong: Callable[[Tensor], Tensor]) -> None:
    flat = FlatParameters(small_net())
    own = flat.vector
    with pytest.raises(ValueError, match="is it from another network"):
        flat.adopt(wrong(own))
    assert flat.vector is own


def test_refusals() -> None:
    net = small_net()
    flat = FlatParameters(net)
    with pytest.raises(ValueError, match="another network"):
        flat.load(torch.zeros(3))
    with pytest.raises(ValueError, match="another network"):
        load_flat(net, torch.zeros(3))
    parts = flat.split(flat.vector)
    with pytest.raises(ValueError, match=r"head\.value\.bias"):
        flat.join({n: p for n, p in parts.items() if n != "head.value.bias"})
    with pytest.raises(ValueError, match=r"head\.value\.bias has shape \(2,\)"):
        flat.join({**parts, "head.value.bias": torch.zeros(2)})
    with pytest.raises(ValueError, match="bfloat16"):
        FlatParameters(net.to(torch.bfloat16))
