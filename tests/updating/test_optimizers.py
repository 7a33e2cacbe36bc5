"""Optimisers against slow float64 references and torch.optim."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from drl_mpi.updating.optimizers import Adam, RMSProp, clip_by_global_norm, make_optimizer

torch.set_num_threads(1)  # on a shared machine torch's waiting threads cost minutes
P, STEPS = 1_003, 25


def gradients() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(P, generator=generator) * 10.0 ** (i % 5 - 3) for i in range(STEPS)]


def rate(step: int) -> float:
    return 1e-2 * (1.0 - step / STEPS)


def run(optimizer: Any, begin: int = 0, end: int = STEPS, start: Any = None) -> torch.Tensor:
    parameters = torch.linspace(-1.0, 1.0, P) if start is None else start.clone()
    for step, gradient in list(enumerate(gradients()))[begin:end]:
        optimizer.step(parameters, gradient, rate(step))
    return parameters


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("initial", [0.0, 1.0])
def test_rmsprop_is_the_papers(momentum: float, initial: float) -> None:
    optimizer = RMSProp(decay=0.9, eps=0.1, momentum=momentum, initial_mean_square=initial)
    x = np.linspace(-1.0, 1.0, P)
    for i in range(0, P, 97):
        theta, square, velocity = x[i], initial, 0.0
        for step, gradient in enumerate(gradients()):
            g = float(gradient[i])
            square = 0.9 * square + 0.1 * g * g
            velocity = momentum * velocity + rate(step) * g / math.sqrt(square + 0.1)
            theta -= velocity
        x[i] = theta
    result = run(optimizer).numpy()
    np.testing.assert_allclose(result[::97], x[::97], rtol=1e-5, atol=1e-6)
    assert optimizer.steps == STEPS


def test_adam_is_torchs_and_the_papers() -> None:
    result = run(Adam(0.8, 0.95, 1e-3)).numpy()
    parameter = torch.nn.Parameter(torch.linspace(-1.0, 1.0, P))
    theirs = torch.optim.Adam([parameter], lr=1.0, betas=(0.8, 0.95), eps=1e-3)
    theta = np.linspace(-1.0, 1.0, P)
    mean = square = np.zeros(P)
    for step, gradient in enumerate(gradients()):
        parameter.grad = gradient
        theirs.param_groups[0]["lr"] = rate(step)
        theirs.step()
        g = gradient.double().numpy()
        mean, square = 0.8 * mean + 0.2 * g, 0.95 * square + 0.05 * g * g
        unbiased = mean / (1 - 0.8 ** (step + 1)), square / (1 - 0.95 ** (step + 1))
        theta = theta - rate(step) * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-3)
    np.testing.assert_allclose(result, parameter.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result, theta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("rmsprop", {}), ("rmsprop", {"momentum": 0.9}), ("adam", {"eps": 1e-4})],
)
@pytest.mark.parametrize("cut", [0, 11])
def test_a_restored_optimizer_goes_on_bit_for_bit(name: str, settings: Any, cut: int) -> None:
    straight = run(make_optimizer(name, **settings))
    before = make_optimizer(name, **settings)
    middle = run(before, end=cut)
    saved = {slot: tensor.clone() for slot, tensor in before.slots().items()}
    assert all(t.shape == (P,) and t.dtype == torch.float32 for t in saved.values())
    after = make_optimizer(name, **settings)
    after.restore(saved, before.steps)
    result = run(after, begin=cut, start=middle)
    assert torch.equal(result, straight)
    assert after.steps == STEPS
    for slot, tensor in after.slots().items():
        assert slot not in saved or tensor.data_ptr() != saved[slot].data_ptr()


def test_gradients_are_not_changed_and_parameters_stay_in_place() -> None:
    for name in ("rmsprop", "adam"):
        parameters, gradient = torch.zeros(P), torch.ones(P)
        home = parameters.data_ptr()
        make_optimizer(name).step(parameters, gradient, 0.1)
        assert parameters.data_ptr() == home
        assert bool((parameters < 0).all())
        assert bool((gradient == 1).all())


@pytest.mark.parametrize("max_norm", [0.5, 5.0, 50.0, math.inf])
def test_clipping(max_norm: float) -> None:
    gradient = torch.tensor([3.0, 0.0, 4.0])
    home = gradient.data_ptr()
    assert clip_by_global_norm(gradient, max_norm) == pytest.approx(5.0)
    assert gradient.data_ptr() == home
    expected = np.array([3.0, 0.0, 4.0]) * min(1.0, max_norm / 5.0)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-6)


def test_clipping_of_zero_huge_and_broken_gradients() -> None:
    zero = torch.zeros(4)
    assert clip_by_global_norm(zero, 40.0) == 0.0
    assert not zero.any()
    huge = torch.full((4,), 1e30)  # its squares overflow float32
    assert clip_by_global_norm(huge, 1.0) == pytest.approx(2e30)
    np.testing.assert_allclose(huge.numpy(), 0.5, rtol=1e-5)
    for bad in (math.nan, math.inf):
        gradient = torch.tensor([1.0, bad])
        norm = clip_by_global_norm(gradient, 1.0)
        assert not math.isfinite(norm)
        assert gradient[0] == 1.0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="'sgd', allowed: rmsprop, adam"):
        make_optimizer("sgd")
    with pytest.raises(ValueError, match="beta1"):
        make_optimizer("rmsprop", beta1=0.9)
    with pytest.raises(ValueError, match="decay is 1"):
        make_optimizer("rmsprop", decay=1.0)
    with pytest.raises(ValueError, match="eps is 0"):
        make_optimizer("adam", eps=0.0)
    with pytest.raises(ValueError, match="another optimiser"):
        Adam().restore({"mean_square": torch.zeros(P)}, 3)
    optimizer = RMSProp()
    optimizer.restore({"mean_square": torch.zeros(P)}, 3)
    with pytest.raises(ValueError, match="another network"):
        optimizer.step(torch.zeros(P + 1), torch.zeros(P + 1), 0.1)
