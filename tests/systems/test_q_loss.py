"""The Q-learning loss against a loop over transitions, and when its target network is renewed."""

import numpy as np
import pytest
import torch

from drl_mpi.experience.replay import UniformReplay
from drl_mpi.experience.testing import Trial
from drl_mpi.experience.transitions import TransitionBatch
from drl_mpi.nets import FlatParameters, make
from drl_mpi.systems.q_loss import QLoss

B, ACTIONS, STACK, N_STEPS = 24, 5, 2, 3


def network(seed, head="q"):
    net = make("mlp", (2 * STACK,), ACTIONS, head=head, seed=seed)
    return net, FlatParameters(net)


def q_values(net, stacks):
    """Of observations [B, stack, 2], one at a time: list of [A]."""
    rows = []
    for stack in np.asarray(stacks, np.float32):
        observation = torch.from_numpy(stack.reshape(1, 1, -1))
        with torch.no_grad():
            output, _ = net(observation, torch.zeros(1, 1, dtype=torch.bool))
        rows.append(output.q[0, 0].double().numpy())
    return rows


@pytest.fixture
def trial():
    """A replay in which games end in all ways; its frames are numbers up to some tens."""
    trial = Trial(UniformReplay, stack=STACK, lanes=3, length=40, n_steps=N_STEPS, ends=0.2)
    trial.play(15, 15)
    return trial


@pytest.fixture
def batch(trial):
    batch = TransitionBatch(trial.spec, B)
    trial.sample(batch)
    batch.weights[:] = torch.linspace(0.1, 1.0, B)
    return batch


@pytest.mark.parametrize("head", ["q", "dueling"])
@pytest.mark.parametrize("double", [False, True])
def test_it_equals_a_loop_over_transitions(double, head, trial, batch):
    net, flat = network(1, head)
    loss_of = QLoss(net, flat, period=100, double=double)
    loss_of.prepare(0)
    old, _ = network(1, head)
    flat.load(network(2, head)[1].vector)  # now target and network differ

    wanted = [trial.reference.starts()[key] for key in trial.keys(batch)]
    q_tm1 = q_values(net, [each.stack for each in wanted])
    q_target = q_values(old, [each.next_stack for each in wanted])
    q_online = q_values(net, [each.next_stack for each in wanted])
    expected, slopes, errors = 0.0, [], []
    for i, each in enumerate(wanted):
        best = np.argmax(q_online[i] if double else q_target[i])
        error = each.reward + each.discount * q_target[i][best] - q_tm1[i][each.action]
        huber = 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5
        weight = float(batch.weights[i])
        expected += weight * huber / B
        slopes.append(-weight * max(-1.0, min(1.0, error)) / B)
        errors.append(abs(error))
    assert {each.discount for each in wanted} >= {0.0, 0.75**3}, "ends, and whole windows"
    assert min(errors) < 1 < max(errors), "both parts of Huber's loss"

    loss, scalars = loss_of(batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(batch.errors, errors, rtol=1e-3, atol=1e-4)
    assert scalars["td_error"].item() == pytest.approx(np.mean(errors), rel=1e-4)
    assert scalars["q_mean"].item() == pytest.approx(np.mean([q.max() for q in q_tm1]), rel=1e-4)

    # No gradient flows but through Q(x, a): by hand, with the slopes from above.
    got = flat.gradient.clone()
    flat.zero_grad()
    first = torch.zeros(1, B, dtype=torch.bool)
    output, _ = net(batch.observations.unsqueeze(0), first)
    chosen = output.q[0][torch.arange(B), batch.actions]
    (chosen * torch.tensor(slopes, dtype=torch.float32)).sum().backward()
    np.testing.assert_allclose(got, flat.gradient, rtol=1e-3, atol=1e-5)
    assert got.abs().max() > 0.01


def test_weights_weigh_and_errors_do_not_know_them(batch):
    net, flat = network(1)
    loss_of = QLoss(net, flat, 10, True)
    loss_of.prepare(0)
    batch.weights.fill_(1.0)
    whole, errors = loss_of(batch)[0].item(), batch.errors.clone()
    batch.weights.fill_(0.25)
    assert loss_of(batch)[0].item() == pytest.approx(whole / 4)
    assert torch.equal(batch.errors, errors)


@pytest.fixture
def moving():
    """``moving(version)``: the version whose parameters the target has, when this one is current.

    All parameters of version v are v.
    """
    net, flat = network(1)

    class Moving:
        loss = QLoss(net, flat, period=10, double=False)

        def __call__(self, version):
            flat.vector.fill_(float(version))
            self.loss.prepare(version)
            state = self.loss.state()
            values = {float(v) for array in state["target"].values() for v in array.flat}
            assert values == {float(state["version"])}
            return state["version"]

    return Moving()


def test_the_target_is_renewed_at_multiples_of_the_period(moving):
    assert [moving(version) for version in range(25)] == 10 * [0] + 10 * [10] + 5 * [20]


def test_the_target_is_renewed_when_versions_jump(moving):
    """Other learners' updates count: a learner may never see the multiple itself."""
    seen = {3: 3, 9: 3, 12: 12, 12.5: 12, 19: 12, 57: 57, 59: 57, 60: 60, 141: 141}
    assert [moving(int(version)) for version in seen] == list(seen.values())


def test_the_target_goes_on_from_its_state(moving, batch):
    assert (moving(27), moving(29)) == (27, 27)
    state = {
        "version": moving.loss.state()["version"],
        "target": {name: array.copy() for name, array in moving.loss.state()["target"].items()},
    }
    assert moving(31) == 31
    moving.loss.restore(state)
    assert moving.loss.state()["version"] == 27
    assert [moving(version) for version in (28, 29, 30)] == [27, 27, 30]
    assert moving.loss(batch)[1]["target_version"].item() == 30


def test_without_a_state_the_target_begins_with_what_is_there(moving):
    """As when a checkpoint has no part for this learner."""
    assert [moving(version) for version in (1234, 1239, 1240)] == [1234, 1234, 1240]


def test_the_target_is_not_trained(batch):
    net, flat = network(1)
    loss_of = QLoss(net, flat, 10, True)
    loss_of.prepare(0)
    before = {name: array.copy() for name, array in loss_of.state()["target"].items()}
    loss_of(batch)[0].backward()
    with torch.no_grad():
        flat.vector -= flat.gradient
    after = loss_of.state()["target"]
    assert all(np.array_equal(before[name], after[name]) for name in before)
