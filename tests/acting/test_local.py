"""Local acting: what is drawn, its log-probability, and which version acts."""

import numpy as np
import pytest
import torch

from drl_mpi import nets
from drl_mpi.acting.choosing import ChooseEpsilonGreedily, choose_by_softmax, sample
from drl_mpi.acting.local import LocalActing, SharedActing
from drl_mpi.comm.parameters import Published
from drl_mpi.comm.poller import Poller, SilenceError
from drl_mpi.experience.rng import make_rng


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_actions_are_drawn_from_the_softmax():
    logits = np.array([1.0, -2.0, 0.5, 3.0, 3.0], np.float32)
    draws = 50_000
    actions, _ = sample(np.tile(logits, (draws, 1)), make_rng(4))
    counts, expected = np.bincount(actions, minlength=5), softmax(logits) * draws
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # 0.1 % point, 4 degrees of freedom


@pytest.mark.parametrize("scale", [0.0, 1.0, 80.0, 1e4])
def test_log_probs_belong_to_the_actions(scale):
    logits = (np.random.default_rng(1).normal(size=(300, 6)) * scale).astype(np.float32)
    actions, log_probs = sample(logits, make_rng(4))
    assert log_probs.dtype == np.float32
    assert actions.dtype == np.int64
    expected = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    expected = np.take_along_axis(expected, actions[:, None], -1)[:, 0]
    np.testing.assert_allclose(log_probs, expected, rtol=1e-5, atol=1e-5 + 1e-7 * scale)


def test_one_number_is_drawn_per_logit():
    """So that an actor's RNG after an unroll depends on its length alone."""
    left, right = make_rng(4), make_rng(4)
    sample(np.zeros((3, 5), np.float32), left)
    right.random((3, 5))
    assert left.random() == right.random()


class Mail:
    """Parameters with scripted news: None, a Published, or "stop"; asked for, or by themselves."""

    def __init__(self, *news, asked=False):
        self.news = list(news)
        self.stopped = self.due = self.closed = False
        self.asked = asked

    def begin(self):
        self.due = self.asked

    def newest(self):
        item = self.news.pop(0) if self.news else None
        if item == "stop":
            self.stopped, item = True, None
        if item is not None:
            self.due = False
        return item

    def close(self):
        self.closed = True


def parameters(net, version):
    vector = torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy()
    return Published(version, (vector * (1 + version)).astype(np.float32), 100 * version)


def make(*news, core=None, choose=choose_by_softmax, head="policy_value", asked=False):
    net = nets.make("mlp", (4,), 3, head=head, core=core, seed=1)
    mail = Mail(
        *(parameters(net, item) if isinstance(item, int) else item for item in news), asked=asked
    )
    return net, LocalActing(net, mail, Poller(0.2), choose, make_rng(1))


def test_it_waits_for_the_first_version_only():
    _, acting = make(None, None, 0)
    assert acting.version == -1
    assert acting.refresh()
    assert acting.version == 0
    assert acting.refresh()  # nothing new: goes on with what it has
    assert acting.version == 0
    assert not acting.stopped


def test_it_takes_up_what_is_newest():
    _, acting = make(0, 4, None)
    acting.refresh()
    acting.refresh()
    assert acting.version == 4


def test_in_lock_step_it_waits_for_the_version():
    _, acting = make(0, None, None, 2)
    assert acting.refresh(0)
    assert acting.refresh(2)
    assert acting.version == 2
    with pytest.raises(SilenceError, match=r"waited 0 s for parameters, "):
        acting.refresh(4)


def test_in_lock_step_a_later_version_is_an_error():
    _, acting = make(3)
    with pytest.raises(RuntimeError, match="got version 3 where lock-step needs version 2"):
        acting.refresh(2)


def test_what_was_asked_for_is_waited_for():
    """An unroll that is due new parameters does not begin with those that are there."""
    _, acting = make(0, None, None, 3, asked=True)
    acting.refresh()
    assert acting.version == 0
    acting.refresh()
    assert acting.version == 3
    with pytest.raises(SilenceError, match="for parameters"):
        acting.refresh()


@pytest.mark.parametrize("version", [None, 1])
def test_it_sees_the_end(version):
    _, acting = make(0, None, "stop")
    acting.refresh(None if version is None else 0)
    while acting.refresh(version) and version is None:
        pass
    assert acting.stopped


def test_it_acts_with_the_version_that_it_names():
    net, acting = make(0, 1)
    rows = np.random.default_rng(2).normal(size=(50, 4)).astype(np.float32)
    first = np.zeros(50, bool)
    for version in range(2):
        acting.refresh(version)
        vector = parameters(nets.make("mlp", (4,), 3, seed=1), version).vector
        nets.load_flat(net, vector)  # the learner's net itself is not what acts
        actions, choice = acting.act(rows, first, None)
        with torch.no_grad():
            output, _ = net(torch.from_numpy(rows)[None], torch.from_numpy(first)[None])
        expected = output.logits[0].log_softmax(-1).numpy()[np.arange(50), actions]
        np.testing.assert_allclose(choice.log_probs, expected, rtol=1e-5, atol=1e-6)
        assert choice.state is None


def test_the_learners_network_is_not_touched():
    net, acting = make(0, 7)
    before = [p.detach().clone() for p in net.parameters()]
    acting.refresh()
    acting.refresh(7)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_core_restarts_where_an_episode_begins():
    _, acting = make(0, core="lstm")
    acting.refresh()
    rows = np.random.default_rng(2).normal(size=(2, 4)).astype(np.float32)
    state = np.random.default_rng(3).normal(size=(2, 2, 256)).astype(np.float32)
    _, restarted = acting.act(rows, np.array([True, False]), state)
    _, zero = acting.act(rows, np.zeros(2, bool), np.zeros_like(state))
    _, kept = acting.act(rows, np.zeros(2, bool), state)
    np.testing.assert_allclose(restarted.state[:, 0], zero.state[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(restarted.state[:, 1], kept.state[:, 1], rtol=1e-5, atol=1e-6)
    assert np.abs(kept.state[:, 0] - zero.state[:, 0]).max() > 1e-3


def test_the_rule_of_choice_is_told_what_acts():
    """Schedules of exploration count versions, or steps behind them."""
    told = []

    def choose(output, version, steps, rng):
        told.append((version, steps))
        return choose_by_softmax(output, version, steps, rng)

    _, acting = make(0, 7, choose=choose)
    rows, first = np.zeros((2, 4), np.float32), np.zeros(2, bool)
    for version in (0, 7):
        acting.refresh(version)
        acting.act(rows, first, None)
    assert told == [(0, 0), (7, 700)]


def test_epsilon_greedy_takes_the_largest_value_but_for_epsilon():
    asked = []

    def epsilon(version, steps):
        asked.append((version, steps))
        return 0.0 if version else 1.0

    choose = ChooseEpsilonGreedily(epsilon)
    net, acting = make(0, 4, choose=choose, head="q")
    rows = np.random.default_rng(2).normal(size=(600, 4)).astype(np.float32)
    first = np.zeros(600, bool)
    acting.refresh(0)
    actions, choice = acting.act(rows, first, None)
    assert np.bincount(actions, minlength=3).min() > 150
    np.testing.assert_allclose(choice.log_probs, np.log(1 / 3), rtol=1e-6)
    acting.refresh(4)
    actions, choice = acting.act(rows, first, None)
    nets.load_flat(net, parameters(nets.make("mlp", (4,), 3, head="q", seed=1), 4).vector)
    with torch.no_grad():
        output, _ = net(torch.from_numpy(rows)[None], torch.from_numpy(first)[None])
    np.testing.assert_array_equal(actions, output.q[0].argmax(-1).numpy())
    assert not choice.log_probs.any()
    assert asked == [(0, 0), (4, 400)]


def test_it_gives_back_what_its_parameters_hold():
    _, acting = make(0)
    acting.close()
    assert acting._parameters.closed


class Owner:
    """Keeps a network's parameters current: with every pull another version."""

    version, steps = 0, 0

    def __init__(self, net):
        self.net = net

    def pull(self):
        self.version, self.steps = self.version + 1, self.steps + 50
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.mul_(1.5)


def test_shared_acting_acts_with_the_learners_own_parameters():
    net, told = nets.make("mlp", (4,), 3, core="lstm", seed=1), []

    def choose(output, version, steps, rng):
        told.append((version, steps))
        return choose_by_softmax(output, version, steps, rng)

    acting = SharedActing(net, Owner(net), choose, make_rng(1))
    rows = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float32)
    first, state = np.zeros(30, bool), np.ones((2, 30, 256), np.float32)
    for version in (1, 2):
        assert acting.refresh(version)
        assert acting.version == version
        actions, choice = acting.act(rows, first, state)
        with torch.no_grad():
            output, after = net(
                torch.from_numpy(rows)[None], torch.from_numpy(first)[None], torch.from_numpy(state)
            )
        expected = output.logits[0].log_softmax(-1).numpy()[np.arange(30), actions]
        np.testing.assert_allclose(choice.log_probs, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(choice.state, after.numpy())
    assert told == [(1, 50), (2, 100)]
    assert not acting.stopped
