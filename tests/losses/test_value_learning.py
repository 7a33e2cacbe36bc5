"""Q-learning errors against a loop over transitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_mpi.losses import double_q_learning, q_learning

NAMES = ["q_tm1", "a_tm1", "r_t", "discount_t", "q_t_value", "q_t_selector"]


def batch(seed, *leading, num_actions=4):
    """The six arguments of double_q_learning, float64; some transitions end an episode."""
    rng = np.random.default_rng(seed)
    q_tm1, q_t_value, q_t_selector = rng.normal(size=(3, *leading, num_actions))
    discount_t = 0.99 * (rng.random(leading) > 0.3)
    a_tm1 = rng.integers(0, num_actions, leading)
    return [q_tm1, a_tm1, rng.normal(size=leading), discount_t, q_t_value, q_t_selector]


def tensors(arrays):
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


def slow_td(q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector):
    td = np.zeros_like(r_t)
    for row in np.ndindex(*r_t.shape):
        best = 0
        for action, q in enumerate(q_t_selector[row]):
            if q > q_t_selector[row][best]:
                best = action
        target = r_t[row] + discount_t[row] * q_t_value[row][best]
        td[row] = target - q_tm1[row][a_tm1[row]]
    return td


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    leading=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    num_actions=st.integers(1, 5),
)
def test_both_equal_the_loop(seed, leading, num_actions):
    arguments = batch(seed, *leading, num_actions=num_actions)
    np.testing.assert_allclose(double_q_learning(*tensors(arguments)).numpy(), slow_td(*arguments))
    single = [*arguments[:5], arguments[4]]
    np.testing.assert_allclose(q_learning(*tensors(single[:5])).numpy(), slow_td(*single))


def test_the_selector_selects_and_the_other_gives_the_value():
    td = double_q_learning(
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([1]),
        torch.tensor([10.0]),
        torch.tensor([0.5]),
        q_t_value=torch.tensor([[100.0, 4.0]]),
        q_t_selector=torch.tensor([[0.0, 1.0]]),
    )
    assert td.tolist() == [10.0 + 0.5 * 4.0 - 2.0]


@pytest.mark.parametrize("double", [False, True])
def test_gradient_reaches_the_chosen_action_before_and_nothing_else(double):
    arguments = tensors(batch(1, 5))
    floats = [tensor.requires_grad_() for tensor in arguments if tensor.is_floating_point()]
    td = double_q_learning(*arguments) if double else q_learning(*arguments[:5])
    td.sum().backward()
    want = -torch.nn.functional.one_hot(arguments[1], 4).double()
    assert torch.equal(floats[0].grad, want)
    assert all(tensor.grad is None for tensor in floats[1:])


@pytest.mark.parametrize("wrong", range(6), ids=NAMES)
@pytest.mark.parametrize("change", ["rank", "shape"])
def test_a_rank_or_shape_that_does_not_match_is_refused(wrong, change):
    arguments = tensors(batch(2, 5))
    odd = arguments[wrong]
    arguments[wrong] = odd.unsqueeze(0) if change == "rank" else odd[:1]
    # When the first argument is the odd one, the next is named and compared with it.
    name = NAMES[max(wrong, 1)]
    with pytest.raises(ValueError, match=rf"^{name} has shape \[.*\]; expected \["):
        double_q_learning(*arguments)
    if wrong < 5:
        name = {"q_t_value": "q_t"}.get(name, name)
        with pytest.raises(ValueError, match=rf"^{name} has shape \[.*\]; expected \["):
            q_learning(*arguments[:5])


@pytest.mark.parametrize("double", [False, True])
def test_a_batch_and_integer_actions_are_needed(double):
    arguments = tensors(batch(3, 5))
    loss, count = (double_q_learning, 6) if double else (q_learning, 5)
    with pytest.raises(ValueError, match=r"q_tm1 has shape \[4\]; expected \[\.\.\., A\]"):
        loss(*[tensor[0] for tensor in arguments[:count]])
    arguments[1] = arguments[1].float()
    with pytest.raises(ValueError, match=r"a_tm1 has dtype torch.float32; expected an integer"):
        loss(*arguments[:count])
