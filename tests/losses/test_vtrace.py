"""V-trace against equation 1 of the paper, written as its sum of products."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_mpi.losses import discounted_returns, lambda_returns, vtrace

NAMES = ["log_rhos", "discounts", "rewards", "values", "bootstrap_value"]


def slow_vtrace(
    log_rhos, discounts, rewards, values, bootstrap_value, rho_bar, pg_rho_bar, c_bar, lambda_
):
    """v_s = V_s + sum over t of (gamma_s c_s) ... (gamma_{t-1} c_{t-1}) delta_t, term by term."""
    T = len(rewards)
    ratio = np.exp(log_rhos)
    values_with_end = [*values, bootstrap_value]
    vs = []
    for s in range(T):
        v = np.array(values[s])
        for t in range(s, T):
            trace = np.ones_like(v)
            for i in range(s, t):
                trace *= discounts[i] * lambda_ * np.minimum(c_bar, ratio[i])
            error = rewards[t] + discounts[t] * values_with_end[t + 1] - values[t]
            v += trace * np.minimum(rho_bar, ratio[t]) * error
        vs.append(v)
    vs_with_end = [*vs, bootstrap_value]
    advantages = [
        np.minimum(pg_rho_bar, ratio[s])
        * (rewards[s] + discounts[s] * vs_with_end[s + 1] - values[s])
        for s in range(T)
    ]
    return np.stack(vs), np.stack(advantages)


def batch(seed, T, B, *extra, masked=0.0):
    """The five arguments of vtrace, float64; some episodes end, and some rows are masked."""
    rng = np.random.default_rng(seed)
    shape = (T, B, *extra)
    log_rhos = rng.normal(size=shape)
    log_rhos[rng.random(shape) < masked] = -np.inf
    discounts = rng.uniform(0.8, 1.0, shape) * (rng.random(shape) > 0.2)
    return [log_rhos, discounts, *(rng.normal(size=s) for s in (shape, shape, shape[1:]))]


def tensors(arrays):
    return [torch.from_numpy(array) for array in arrays]


def check(arguments, rho_bar=1.0, pg_rho_bar=1.0, c_bar=1.0, lambda_=1.0):
    got = vtrace(
        *tensors(arguments),
        clip_rho=rho_bar,
        clip_pg_rho=pg_rho_bar,
        clip_c=c_bar,
        lambda_=lambda_,
    )
    vs, advantages = slow_vtrace(*arguments, rho_bar, pg_rho_bar, c_bar, lambda_)
    np.testing.assert_allclose(got.vs.numpy(), vs, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(got.pg_advantages.numpy(), advantages, rtol=1e-8, atol=1e-8)


bars = st.one_of(st.floats(0.0, 4.0), st.just(math.inf))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    T=st.integers(1, 10),
    B=st.integers(1, 4),
    extra=st.sampled_from([(), (3,), (2, 2)]),
    two_bars=st.tuples(bars, bars),
    pg_rho_bar=bars,
    lambda_=st.floats(0.0, 1.0),
    masked=st.sampled_from([0.0, 0.3]),
)
def test_equals_the_sum_of_products(seed, T, B, extra, two_bars, pg_rho_bar, lambda_, masked):
    check(
        batch(seed, T, B, *extra, masked=masked),
        rho_bar=max(two_bars),
        pg_rho_bar=pg_rho_bar,
        c_bar=min(two_bars),
        lambda_=lambda_,
    )


def test_all_bars_and_lambda_default_to_one():
    arguments = batch(7, 9, 3)
    got = vtrace(*tensors(arguments))
    vs, advantages = slow_vtrace(*arguments, 1.0, 1.0, 1.0, 1.0)
    np.testing.assert_allclose(got.vs.numpy(), vs)
    np.testing.assert_allclose(got.pg_advantages.numpy(), advantages)


@pytest.mark.parametrize("rho_pg_rho_c", [(3.0, 2.0, 1.0), (3.0, 1.0, 2.0), (2.0, 3.0, 1.0)])
def test_each_bar_is_its_own(rho_pg_rho_c):
    check(batch(8, 9, 3), *rho_pg_rho_c)


def test_on_policy_the_target_is_the_n_step_bellman_target():
    log_rhos, discounts, rewards, values, bootstrap_value = tensors(batch(9, 20, 4))
    got = vtrace(log_rhos * 0, discounts, rewards, values, bootstrap_value)
    bellman = discounted_returns(rewards, discounts, bootstrap_value)
    torch.testing.assert_close(got.vs, bellman)
    torch.testing.assert_close(got.pg_advantages, bellman - values)


def test_on_policy_with_lambda_the_target_is_the_lambda_return():
    log_rhos, discounts, rewards, values, bootstrap_value = tensors(batch(10, 20, 4))
    got = vtrace(log_rhos * 0, discounts, rewards, values, bootstrap_value, lambda_=0.7)
    next_values = torch.cat([values[1:], bootstrap_value[None]])
    torch.testing.assert_close(got.vs, lambda_returns(rewards, discounts, next_values, 0.7))


@pytest.mark.parametrize("clip", [1.0, math.inf])
def test_a_masked_transition_is_as_if_it_were_not_there(clip):
    """A truncated episode: row 2 ends it, row 3 leads from its last observation to the reset."""
    arguments = batch(11, 7, 3)
    arguments[1][:] = 0.9
    arguments[0][3], arguments[1][3], arguments[2][3] = -np.inf, 0.0, 0.0
    bars = {"clip_rho": clip, "clip_pg_rho": clip, "clip_c": clip}
    got = vtrace(*tensors(arguments), **bars)
    values = torch.from_numpy(arguments[3])

    assert torch.equal(got.vs[3], values[3])
    assert torch.equal(got.pg_advantages[3], torch.zeros(3, dtype=torch.float64))
    before = vtrace(*[tensor[:3] for tensor in tensors(arguments)[:4]], values[3], **bars)
    after = vtrace(
        *[tensor[4:] for tensor in tensors(arguments)[:4]], torch.from_numpy(arguments[4]), **bars
    )
    for whole, first, second in zip(got, before, after):
        torch.testing.assert_close(whole[:3], first)
        torch.testing.assert_close(whole[4:], second)


@pytest.mark.parametrize("discount", [0.0, 0.99])
def test_an_unroll_of_masked_transitions_only_has_no_nan(discount):
    _, _, rewards, values, bootstrap_value = tensors(batch(12, 5, 2))
    log_rhos = torch.full_like(rewards, -math.inf)
    got = vtrace(log_rhos, torch.full_like(rewards, discount), rewards, values, bootstrap_value)
    assert torch.equal(got.vs, values)
    assert torch.equal(got.pg_advantages, torch.zeros_like(values))


def test_a_ratio_that_overflows_does_not_become_nan_where_it_counts_nothing():
    log_rhos = torch.tensor([[0.0], [200.0]])  # exp(200) is infinite in float32
    zero = torch.zeros(2, 1)
    no_bars = {"clip_rho": math.inf, "clip_pg_rho": math.inf, "clip_c": math.inf}
    got = vtrace(log_rhos, zero, zero, zero, torch.zeros(1), lambda_=0.0, **no_bars)
    assert torch.equal(got.vs, zero)
    assert torch.equal(got.pg_advantages, zero)


def test_outputs_carry_no_gradient_and_arguments_stay_as_they_were():
    arguments = [tensor.requires_grad_() for tensor in tensors(batch(13, 5, 3, masked=0.2))]
    before = [tensor.detach().clone() for tensor in arguments]
    got = vtrace(*arguments)
    assert not got.vs.requires_grad
    assert not got.pg_advantages.requires_grad
    for tensor, old in zip(arguments, before):
        assert torch.equal(tensor, old)


def test_outputs_can_be_constants_of_a_loss():
    """Tensors made under inference_mode could not; a learner multiplies these with its log pi."""
    arguments = tensors(batch(14, 5, 3))
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    got = vtrace(*arguments)
    (weight * got.pg_advantages + (got.vs - weight).square()).sum().backward()
    want = (got.pg_advantages - 2 * (got.vs - 1)).sum()
    torch.testing.assert_close(weight.grad, want)


def test_half_precision_is_computed_in_single():
    arguments = [tensor.bfloat16() for tensor in tensors(batch(15, 40, 2))]
    got = vtrace(*arguments)
    want = vtrace(*[tensor.float() for tensor in arguments])
    assert got.vs.dtype == got.pg_advantages.dtype == torch.float32
    assert torch.equal(got.vs, want.vs)
    assert torch.equal(got.pg_advantages, want.pg_advantages)


@pytest.mark.parametrize("wrong", range(5), ids=NAMES)
@pytest.mark.parametrize("change", ["rank", "shape"])
def test_a_rank_or_shape_that_does_not_match_is_refused(wrong, change):
    arguments = tensors(batch(16, 5, 3))
    odd = arguments[wrong]
    arguments[wrong] = odd.unsqueeze(-1) if change == "rank" else odd[..., :1]
    # When the first argument is the odd one, the next is named and compared with it.
    name = NAMES[max(wrong, 1)]
    with pytest.raises(ValueError, match=rf"{name} has shape \[.*\]; expected \[.*\]"):
        vtrace(*arguments)


@pytest.mark.parametrize("shape", [(0, 3), (4,)])
def test_time_and_batch_are_needed(shape):
    rows = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"log_rhos has shape .*T >= 1"):
        vtrace(rows, rows, rows, rows, torch.zeros(shape[1:]))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"clip_c": 1.5}, r"clip_c is 1.5 and clip_rho is 1.0; expected clip_c <= clip_rho"),
        ({"clip_rho": 0.5}, r"clip_c is 1.0 and clip_rho is 0.5; expected clip_c <= clip_rho"),
        ({"clip_rho": math.nan}, r"clip_rho is nan; expected a number from 0 to infinity"),
        ({"clip_c": -1.0}, r"clip_c is -1.0; expected a number from 0"),
        ({"clip_pg_rho": -1.0}, r"clip_pg_rho is -1.0; expected a number from 0"),
        ({"lambda_": 1.01}, r"lambda_ is 1.01; expected a number from 0 to 1"),
    ],
)
def test_bars_that_make_no_sense_are_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        vtrace(*tensors(batch(17, 5, 3)), **settings_)
