"""A3C's loss against a loop over environments and steps."""

import numpy as np
import pytest
import torch

from drl_mpi.comm.record import Slot
from drl_mpi.envs import EnvSpec
from drl_mpi.experience.batch import Batch
from drl_mpi.experience.unroll import UnrollShape
from drl_mpi.nets import FlatParameters, make
from drl_mpi.systems.actor_critic_loss import ActorCriticLoss

T, B, ACTIONS, GAMMA = 7, 5, 3, 0.9
SPEC = EnvSpec("Numbers", (4,), "float32", stack=1, num_actions=ACTIONS, action_repeat=1)
VALUE_COST, ENTROPY_COST = 0.5, 0.03


def network(core):
    net = make("mlp", (4,), ACTIONS, core=core, seed=1)
    with torch.no_grad():  # away from the uniform policy
        net.head.policy.weight.mul_(50)
    return net, FlatParameters(net)


def fields_of(shape, seed=1):
    """An unroll. Environment 0: nothing ends. 1: a termination. 2: a time limit.

    3: a life is lost, which terminates, but no game ends; then a game ends with the last
    transition. 4: the first row belongs to a game that ended before, by a time limit.
    """
    rng = np.random.default_rng(seed)
    fields = Slot(shape.record()).fields
    fields["frames"][...] = rng.normal(size=fields["frames"].shape)
    fields["state"][...] = rng.normal(size=fields["state"].shape)
    fields["actions"][...] = rng.integers(0, ACTIONS, (T, B))
    fields["rewards"][...] = rng.normal(size=(T, B))
    fields["log_probs"][...] = -1.0
    fields["discounts"][...] = GAMMA
    fields["resets"][...] = fields["firsts"][...] = False
    # Row t + 1 is the game's last; row t + 2 is the next game's first.
    for environment, last, terminated in ((1, 3, True), (2, 4, False), (4, 0, False)):
        fields["resets"][last + 1, environment] = fields["firsts"][last + 1, environment] = True
        if terminated:
            fields["discounts"][last - 1, environment] = 0.0
    fields["discounts"][2, 3] = 0.0
    fields["firsts"][3, 3] = True
    fields["discounts"][T - 1, 3] = 0.0
    return fields


def batch_of(net, fields):
    batch = Batch(UnrollShape(SPEC, T, B, net.state_shape))
    batch.write(0, fields)
    return batch


def unrolled(net, fields, environment):
    """Logits [T] of [A] and values [T + 1], step by step."""
    state = None
    if net.core is not None:
        state = torch.from_numpy(fields["state"][:, environment : environment + 1].copy())
    logits, values = [], []
    for t in range(T + 1):
        if fields["firsts"][t, environment] and state is not None:
            state = torch.zeros_like(state)
        observation = torch.from_numpy(fields["frames"][t, environment].reshape(1, 1, -1).copy())
        output, state = net(observation, torch.zeros(1, 1, dtype=torch.bool), state)
        logits.append(output.logits[0, 0])
        values.append(output.value[0, 0])
    return logits, values


def slow(net, fields):
    """The loss, and its three terms."""
    policy = value = entropy = torch.zeros(())
    for environment in range(B):
        logits, values = unrolled(net, fields, environment)
        after = values[T].item()
        for t in reversed(range(T)):
            if fields["resets"][t + 1, environment]:  # nothing was decided in row t
                after = values[t].item()
                continue
            after = float(fields["rewards"][t, environment]) + (
                float(fields["discounts"][t, environment]) * after
            )
            log_p = logits[t] - logits[t].exp().sum().log()
            advantage = after - values[t].item()
            policy = policy - log_p[fields["actions"][t, environment]] * advantage
            value = value + 0.5 * (after - values[t]) ** 2
            entropy = entropy + (log_p.exp() * log_p).sum()
    return policy + VALUE_COST * value + ENTROPY_COST * entropy, (policy, value, entropy)


def differentiate(net, flat, fields):
    flat.zero_grad()
    loss, scalars = ActorCriticLoss(net, VALUE_COST, ENTROPY_COST)(batch_of(net, fields))
    loss.backward()
    return loss.item(), flat.gradient.clone(), scalars


@pytest.mark.parametrize("core", [None, "lstm"])
def test_it_equals_a_loop(core):
    net, flat = network(core)
    fields = fields_of(UnrollShape(SPEC, T, B, net.state_shape))
    flat.zero_grad()
    expected, terms = slow(net, fields)
    expected.backward()
    wanted = flat.gradient.clone()
    loss, gradient, scalars = differentiate(net, flat, fields)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=1e-4)
    assert gradient.abs().max() > 0.1
    steps = T * B - 3
    shown = [scalars[name].item() for name in ("policy_loss", "value_loss", "entropy")]
    signs = (1, 1, -1)
    assert shown == pytest.approx(
        [sign * term.item() / steps for sign, term in zip(signs, terms)], rel=1e-4
    )


def one(net, rows, length, *, discount=GAMMA):
    """An unroll of one environment, in which a game ends with transition 3 if there are more."""
    fields = Slot(UnrollShape(SPEC, length, 1, net.state_shape).record()).fields
    rng = np.random.default_rng(7)
    fields["frames"][:, 0] = rows[: length + 1]
    fields["rewards"][:, 0] = rng.normal(size=T)[:length]
    fields["actions"][:, 0] = rng.integers(0, ACTIONS, T)[:length]
    fields["discounts"][...] = GAMMA
    fields["discounts"][3] = discount
    fields["state"][...] = 0.3
    # The rows behind the game's last are all resets: no transition there ever happened.
    fields["resets"][...] = fields["firsts"][...] = False
    fields["resets"][5:] = fields["firsts"][5:] = True
    return fields


def differentiate_one(net, flat, fields):
    flat.zero_grad()
    shape = UnrollShape(SPEC, len(fields["actions"]), 1, net.state_shape)
    batch = Batch(shape)
    batch.write(0, fields)
    loss, _ = ActorCriticLoss(net, VALUE_COST, ENTROPY_COST)(batch)
    loss.backward()
    return loss.item(), flat.gradient.clone()


ROWS = np.random.default_rng(3).normal(size=(T + 1, 4)).astype(np.float32)


@pytest.mark.parametrize("core", [None, "lstm"])
@pytest.mark.parametrize("discount", [GAMMA, 0.0], ids=["time limit", "termination"])
def test_a_game_that_ends_is_an_unroll_that_ends(core, discount):
    """With its bootstrap, row 4, if it was cut short; without, if it terminated."""
    net, flat = network(core)
    loss, gradient = differentiate_one(net, flat, one(net, ROWS, T, discount=discount))
    expected, wanted = differentiate_one(net, flat, one(net, ROWS, 4, discount=discount))
    assert loss == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6)
    other = ROWS.copy()
    other[4] += 1.0
    seen = differentiate_one(net, flat, one(net, other, T, discount=discount))[0]
    assert (seen == pytest.approx(loss, rel=1e-6)) == (discount == 0)


@pytest.mark.parametrize("core", [None, "lstm"])
def test_rows_in_which_nothing_was_decided_have_exactly_no_part(core):
    net, flat = network(core)
    fields = fields_of(UnrollShape(SPEC, T, B, net.state_shape))
    loss, gradient, _ = differentiate(net, flat, fields)
    for name, value in (("actions", 2), ("rewards", 1e6), ("discounts", 0.5), ("rewards", np.nan)):
        for environment, t in ((1, 3), (2, 4), (4, 0)):
            fields[name][t, environment] = value
    again, same, _ = differentiate(net, flat, fields)
    assert again == loss
    assert torch.equal(same, gradient)

    fields["resets"][...] = fields["firsts"][...] = True
    loss, gradient, scalars = differentiate(net, flat, fields)
    assert loss == 0
    assert not gradient.any()
    assert all(float(scalar) == 0 for scalar in scalars.values())


def test_the_recurrent_state_of_the_game_before_is_forgotten():
    net, flat = network("lstm")
    fields = fields_of(UnrollShape(SPEC, T, B, net.state_shape))
    fields["firsts"][0] = True
    loss, gradient, _ = differentiate(net, flat, fields)
    fields["state"][...] = 5.0
    again, same, _ = differentiate(net, flat, fields)
    assert again == loss
    assert torch.equal(same, gradient)
    fields["firsts"][0] = False
    assert differentiate(net, flat, fields)[0] != loss
