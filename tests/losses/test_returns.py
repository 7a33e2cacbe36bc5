"""Returns against sums of products written out term by term."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_mpi.losses import discounted_returns, lambda_returns, n_step_returns


def batch(seed, T, B, *extra):
    """Rewards, discounts with some ends of episodes, and values, all [T, B, ...] float64."""
    rng = np.random.default_rng(seed)
    shape = (T, B, *extra)
    discounts = rng.uniform(0.8, 1.0, shape) * (rng.random(shape) > 0.2)
    return rng.normal(size=shape), discounts, rng.normal(size=shape)


def m_step(rewards, discounts, values, t, m):
    """Rewards t .. t+m-1, then V(x_{t+m}) = values[t+m-1], each times the discounts before it."""
    total = np.zeros(rewards.shape[1:])
    for k in range(m):
        total += np.prod(discounts[t : t + k], axis=0) * rewards[t + k]
    return total + np.prod(discounts[t : t + m], axis=0) * values[t + m - 1]


def slow_n_step(rewards, discounts, values, n):
    T = len(rewards)
    return np.stack([m_step(rewards, discounts, values, t, min(n, T - t)) for t in range(T)])


def slow_lambda(rewards, discounts, values, lambda_):
    """The forward view: m-step returns weighted (1 - lambda) lambda^(m-1), the longest the rest."""
    T = len(rewards)
    rows = []
    for t in range(T):
        longest = T - t
        row = lambda_ ** (longest - 1) * m_step(rewards, discounts, values, t, longest)
        for m in range(1, longest):
            weight = (1 - lambda_) * lambda_ ** (m - 1)
            row = row + weight * m_step(rewards, discounts, values, t, m)
        rows.append(row)
    return np.stack(rows)


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def same(got, want):
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-9)


sizes = {
    "seed": st.integers(0, 10**6),
    "T": st.integers(1, 12),
    "B": st.integers(1, 4),
    "extra": st.sampled_from([(), (3,), (2, 2)]),
}


@settings(max_examples=40, deadline=None)
@given(**sizes)
def test_discounted_returns_is_the_discounted_sum(seed, T, B, extra):
    rewards, discounts, values = batch(seed, T, B, *extra)
    r, d, v = tensors(rewards, discounts, values)
    same(discounted_returns(r, d, v[-1]), slow_n_step(rewards, discounts, values, T))


@settings(max_examples=40, deadline=None)
@given(**sizes, lambda_=st.floats(0.0, 1.0))
def test_lambda_returns_is_the_mixture_of_n_step_returns(seed, T, B, extra, lambda_):
    rewards, discounts, values = batch(seed, T, B, *extra)
    got = lambda_returns(*tensors(rewards, discounts, values), lambda_)
    same(got, slow_lambda(rewards, discounts, values, lambda_))


@settings(max_examples=40, deadline=None)
@given(**sizes, n=st.integers(1, 15))
def test_n_step_returns_is_n_rewards_and_a_value(seed, T, B, extra, n):
    rewards, discounts, values = batch(seed, T, B, *extra)
    got = n_step_returns(*tensors(rewards, discounts, values), n)
    same(got, slow_n_step(rewards, discounts, values, n))


def test_lambda_defaults_to_one():
    r, d, v = tensors(*batch(1, 6, 2))
    torch.testing.assert_close(lambda_returns(r, d, v), discounted_returns(r, d, v[-1]))


def test_numbers_worked_out_by_hand():
    rewards = torch.tensor([[1.0], [2.0], [3.0]])
    discounts = torch.tensor([[0.5], [0.0], [0.5]])  # the second transition ends an episode
    values = torch.tensor([[10.0], [20.0], [40.0]])
    discounted = discounted_returns(rewards, discounts, values[-1])
    assert discounted.tolist() == [[2.0], [2.0], [23.0]]
    assert n_step_returns(rewards, discounts, values, 1).tolist() == [[6.0], [2.0], [23.0]]
    assert lambda_returns(rewards, discounts, values, 0.5).tolist() == [[4.0], [2.0], [23.0]]


def each(function, rewards, discounts, values):
    """Call one of the three with the arguments that it takes."""
    last = {
        "discounted": lambda: discounted_returns(rewards, discounts, values[-1]),
        "lambda": lambda: lambda_returns(rewards, discounts, values, 0.9),
        "n_step": lambda: n_step_returns(rewards, discounts, values, 3),
    }
    return last[function]()


every = pytest.mark.parametrize("function", ["discounted", "lambda", "n_step"])


@every
def test_targets_carry_no_gradient_and_arguments_stay_as_they_were(function):
    arguments = [tensor.requires_grad_() for tensor in tensors(*batch(2, 5, 3))]
    before = [tensor.detach().clone() for tensor in arguments]
    assert not each(function, *arguments).requires_grad
    for tensor, old in zip(arguments, before):
        assert torch.equal(tensor, old)


@every
def test_half_precision_is_summed_in_single(function):
    ones = torch.ones(300, 1, dtype=torch.bfloat16)
    got = each(function, ones, ones, ones * 0)
    assert got.dtype == torch.float32
    if function == "discounted":
        assert got[0].item() == 300.0  # bfloat16 would stop counting at 256


@every
@pytest.mark.parametrize("wrong", ["rewards", "discounts", "values"])
def test_a_rank_or_shape_that_does_not_match_is_refused(function, wrong):
    arguments = dict(zip(["rewards", "discounts", "values"], tensors(*batch(3, 5, 3))))
    arguments[wrong] = arguments[wrong].unsqueeze(-1)
    name = "bootstrap_value|values" if wrong == "values" else "rewards|discounts"
    with pytest.raises(ValueError, match=rf"({name}) has shape \[.*\]; expected \[.*\]"):
        each(function, *arguments.values())


@every
def test_time_and_batch_are_needed(function):
    for shape in [(0, 3), (4,)]:
        tensor = torch.ones(shape)
        values = tensor if function != "discounted" else torch.ones(1, *shape[1:])
        with pytest.raises(ValueError, match=r"rewards has shape .*T >= 1"):
            each(function, tensor, tensor, values)


def test_numbers_outside_their_range_are_refused():
    r, d, v = tensors(*batch(4, 5, 3))
    for lambda_ in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"lambda_ is .*; expected a number from 0 to 1"):
            lambda_returns(r, d, v, lambda_)
    with pytest.raises(ValueError, match="n is 0; expected at least 1"):
        n_step_returns(r, d, v, 0)
