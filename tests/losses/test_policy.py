"""Actor-critic losses against loops over rows; gradients against their formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_mpi.losses import action_log_probs, entropy_loss, policy_gradient_loss, value_loss


def batch(seed, *leading, num_actions=4):
    """Logits [..., A], actions [...], and two float arrays [...]; float64."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(scale=2.0, size=(*leading, num_actions)),
        rng.integers(0, num_actions, leading),
        rng.normal(size=leading),
        rng.normal(size=leading),
    )


def softmax(logits):
    return [math.exp(x) / sum(math.exp(y) for y in logits) for x in logits]


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


def masks(seed, leading):
    """No mask, a boolean one, and one of weights; with what the loops multiply by."""
    rng = np.random.default_rng(seed + 1)
    chosen = rng.random(leading) > 0.4
    weights = chosen * rng.uniform(0.1, 2.0, leading)
    return [
        (None, np.ones(leading)),
        (torch.from_numpy(chosen), chosen),
        (torch.from_numpy(chosen).double(), chosen),
        (torch.from_numpy(weights), weights),
    ]


leading_dimensions = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), leading=leading_dimensions)
def test_each_loss_is_the_sum_over_rows(seed, leading):
    logits, actions, advantages, values = batch(seed, *leading)
    logits_, actions_, advantages_, values_ = tensors(logits, actions, advantages, values)
    for mask, weights in masks(seed, leading):
        gradient, entropy, value = 0.0, 0.0, 0.0
        for row in np.ndindex(*leading):
            pi = softmax(logits[row])
            gradient -= weights[row] * math.log(pi[actions[row]]) * advantages[row]
            entropy -= weights[row] * sum(-p * math.log(p) for p in pi)
            value += weights[row] * 0.5 * (advantages[row] - values[row]) ** 2
        got = policy_gradient_loss(logits_, actions_, advantages_, mask=mask)
        assert got.item() == pytest.approx(gradient)
        assert entropy_loss(logits_, mask=mask).item() == pytest.approx(entropy)
        assert value_loss(values_, advantages_, mask=mask).item() == pytest.approx(value)


def test_action_log_probs_are_those_of_the_actions_taken():
    logits, actions, *_ = batch(1, 3, 2)
    got = action_log_probs(*tensors(logits, actions))
    for row in np.ndindex(3, 2):
        assert got[row].item() == pytest.approx(math.log(softmax(logits[row])[actions[row]]))


def test_gradients_follow_their_formulas_and_stop_at_advantages_and_targets():
    logits, actions, advantages, values = tensors(*batch(2, 5, 3))
    for tensor in (logits, advantages, values):
        tensor.requires_grad_()
    pi = logits.detach().softmax(-1)

    policy_gradient_loss(logits, actions, advantages).backward()
    taken = torch.nn.functional.one_hot(actions, 4)
    torch.testing.assert_close(logits.grad, advantages.detach()[..., None] * (pi - taken))
    assert advantages.grad is None

    logits.grad = None
    entropy_loss(logits).backward()
    entropy = -(pi * pi.log()).sum(-1, keepdim=True)
    torch.testing.assert_close(logits.grad, pi * (pi.log() + entropy))

    value_loss(values, advantages).backward()
    torch.testing.assert_close(values.grad, (values - advantages).detach())
    assert advantages.grad is None


def test_minimising_the_entropy_loss_explores():
    assert entropy_loss(torch.zeros(1, 1, 4)).item() == pytest.approx(-math.log(4))
    assert entropy_loss(torch.tensor([[[50.0, 0.0]]])).item() == pytest.approx(0.0, abs=1e-6)


def test_an_action_ruled_out_makes_no_nan():
    logits = torch.tensor([[[0.0, 0.0, -math.inf]]], requires_grad=True)
    entropy = entropy_loss(logits)
    gradient = policy_gradient_loss(logits, torch.tensor([[1]]), torch.ones(1, 1))
    assert entropy.item() == pytest.approx(-math.log(2))
    assert gradient.item() == pytest.approx(math.log(2))
    (entropy + gradient).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[[0.5, -0.5, 0.0]]]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_masked_row_adds_nothing_even_if_it_is_not_finite(dtype):
    logits, actions, advantages, values = tensors(*batch(3, 4, 2))
    mask = torch.ones(4, 2, dtype=dtype)
    mask[1, 0] = 0
    advantages[1, 0] = math.nan
    logits.requires_grad_()
    values.requires_grad_()
    losses = [
        policy_gradient_loss(logits, actions, advantages, mask=mask),
        entropy_loss(logits, mask=mask),
        value_loss(values, advantages, mask=mask),
    ]
    total = sum(losses)
    total.backward()
    assert total.isfinite()
    for gradient in (logits.grad, values.grad):
        assert gradient.isfinite().all()
        assert not gradient[1, 0].any()
        assert gradient[0].all()


def test_small_action_dtypes_are_indices_too():
    logits, actions, advantages, _ = tensors(*batch(4, 4, 2))
    want = policy_gradient_loss(logits, actions, advantages)
    for dtype in (torch.int32, torch.uint8):
        assert policy_gradient_loss(logits, actions.to(dtype), advantages) == want


def test_shapes_that_would_broadcast_are_refused():
    logits, actions, rows, _ = tensors(*batch(5, 4, 2))
    column = rows.unsqueeze(-1)
    cases = [
        ("advantages", lambda: policy_gradient_loss(logits, actions, column)),
        ("actions", lambda: policy_gradient_loss(logits, actions[0], rows)),
        ("logits", lambda: policy_gradient_loss(logits[0, 0], actions[0, 0], rows[0, 0])),
        ("logits", lambda: entropy_loss(logits[0, 0])),
        ("targets", lambda: value_loss(rows, column)),
    ]
    for mask in (column, rows[0], rows.expand(4, 4, 2)):
        cases += [
            ("mask", lambda m=mask: policy_gradient_loss(logits, actions, rows, mask=m)),
            ("mask", lambda m=mask: entropy_loss(logits, mask=m)),
            ("mask", lambda m=mask: value_loss(rows, rows, mask=m)),
        ]
    for name, call in cases:
        with pytest.raises(ValueError, match=rf"^{name} has shape \[.*\]; expected \["):
            call()


def test_actions_must_be_integers():
    logits, actions, rows, _ = tensors(*batch(6, 4, 2))
    for wrong in (actions.float(), actions > 1):
        with pytest.raises(ValueError, match=r"actions has dtype torch\.\w+; expected an integer"):
            policy_gradient_loss(logits, wrong, rows)


# GA3C's guard, log(max(pi, min_probability))


def guarded(pi, smallest):
    return math.log(max(pi, smallest))


def guarded_losses(logits, actions, advantages, weights, smallest):
    """Policy gradient and entropy loss, row by row and action by action."""
    gradient, entropy = 0.0, 0.0
    for row in np.ndindex(*actions.shape):
        pi = softmax(logits[row])
        gradient -= weights[row] * guarded(pi[actions[row]], smallest) * advantages[row]
        entropy += weights[row] * sum(p * guarded(p, smallest) for p in pi)
    return gradient, entropy


def rare_batch(seed, *leading):
    """A batch in which action 0 has a probability of about 1e-9, and is taken half of the time."""
    logits, actions, advantages, _ = batch(seed, *leading)
    logits[..., 0] = logits[..., 1:].max(axis=-1) - math.log(1e9)
    return logits, actions * np.random.default_rng(seed).integers(0, 2, leading), advantages


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    leading=leading_dimensions,
    smallest=st.sampled_from([1e-12, 1e-6, 0.05, 0.3, 0.99]),
)
def test_the_guarded_losses_are_those_of_the_loops(seed, leading, smallest):
    logits, actions, advantages = rare_batch(seed, *leading)
    logits_, actions_, advantages_ = tensors(logits, actions, advantages)
    for mask, weights in masks(seed, leading):
        options = {"mask": mask, "min_probability": smallest}
        gradient, entropy = guarded_losses(logits, actions, advantages, weights, smallest)
        got = policy_gradient_loss(logits_, actions_, advantages_, **options)
        assert got.item() == pytest.approx(gradient)
        assert entropy_loss(logits_, **options).item() == pytest.approx(entropy)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), smallest=st.sampled_from([1e-6, 0.05, 0.3]))
def test_the_guarded_gradients_are_the_slopes_of_the_loops(seed, smallest):
    logits, actions, advantages = rare_batch(seed, 2, 3)
    weights, step = np.ones((2, 3)), 1e-5
    slopes = np.empty((2, *logits.shape))
    for at in np.ndindex(*logits.shape):
        shifted = np.zeros_like(logits)
        shifted[at] = step
        above, below = (
            np.array(
                guarded_losses(logits + sign * shifted, actions, advantages, weights, smallest)
            )
            for sign in (1, -1)
        )
        slopes[(slice(None), *at)] = (above - below) / (2 * step)
    logits_, actions_, advantages_ = tensors(logits, actions, advantages)
    for loss, want in zip(
        (
            lambda x: policy_gradient_loss(x, actions_, advantages_, min_probability=smallest),
            lambda x: entropy_loss(x, min_probability=smallest),
        ),
        slopes,
    ):
        leaf = logits_.clone().requires_grad_()
        loss(leaf).backward()
        np.testing.assert_allclose(leaf.grad.numpy(), want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_action_below_the_guard_has_a_bounded_loss_and_no_gradient(dtype):
    logits = torch.tensor([[[0.0, math.log(1e-9), -math.inf]]], dtype=dtype, requires_grad=True)
    for action in (1, 2):
        actions = torch.tensor([[action]])
        loss = policy_gradient_loss(
            logits, actions, torch.ones(1, 1, dtype=dtype), min_probability=1e-6
        )
        assert loss.item() == pytest.approx(-math.log(1e-6))
        loss.backward()
        assert not logits.grad.any()
    entropy_loss(logits, min_probability=1e-6).backward()
    assert logits.grad.isfinite().all()
    # p log(max(p, m)) has the slope log p + 1 above m, and log m below
    pi = logits.detach().softmax(-1)
    slope = pi.clamp(min=1e-6).log() + (pi >= 1e-6)
    want = pi * (slope - (pi * slope).sum(-1, keepdim=True))
    torch.testing.assert_close(logits.grad, want)


def before_the_guard(logits, actions, advantages, *, mask=None):
    """Policy gradient and entropy loss, operation by operation as they were."""
    chosen = logits.log_softmax(dim=-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    log_probs = logits.log_softmax(dim=-1)
    finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
    entropies = (log_probs.exp() * finite).sum(dim=-1)
    if mask is not None:
        advantages = torch.where(mask != 0, advantages * mask, 0.0)
        entropies = torch.where(mask != 0, entropies * mask, 0.0)
    return -(chosen * advantages).sum() + entropies.sum()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), leading=leading_dimensions)
def test_without_the_guard_not_a_bit_changes(seed, leading):
    logits, actions, advantages = tensors(*rare_batch(seed, *leading))
    logits[..., 0] -= 50.0

    def both(leaf, *args, **options):
        return policy_gradient_loss(leaf, *args, **options) + entropy_loss(leaf, **options)

    def unbounded(leaf, *args, **options):
        return both(leaf, *args, min_probability=0.0, **options)

    for dtype in (torch.float32, torch.float64):
        for mask, _ in masks(seed, leading):
            results = []
            for loss_of in (before_the_guard, both, unbounded):
                leaf = logits.to(dtype, copy=True).requires_grad_()
                loss = loss_of(leaf, actions, advantages.to(dtype), mask=mask)
                loss.backward()
                results.append((loss.detach(), leaf.grad))
            for loss, gradient in results[1:]:
                assert torch.equal(loss, results[0][0])
                assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("wrong", [-1e-9, 1.0, 2.0, math.nan, math.inf])
def test_the_guard_is_a_probability_below_1(wrong):
    logits, actions, rows, _ = tensors(*batch(7, 4, 2))
    with pytest.raises(ValueError, match=r"^min_probability is .*; expected a number from 0"):
        policy_gradient_loss(logits, actions, rows, min_probability=wrong)
    with pytest.raises(ValueError, match=r"^min_probability is .*; expected a number from 0"):
        entropy_loss(logits, min_probability=wrong)


def test_the_entropy_of_a_ruled_out_action_has_a_gradient_at_any_cost():
    logits = torch.tensor([[[0.3, -1.2, -torch.inf]]], requires_grad=True)
    (1e6 * entropy_loss(logits, mask=torch.full((1, 1), 7.0))).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0, 2] == 0.0
