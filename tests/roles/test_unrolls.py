"""From an actor's environments to a learner's batch: what is learnt from is what happened."""

import itertools

import numpy as np
import pytest
import torch

from drl_mpi import nets
from drl_mpi.acting.choosing import choose_by_softmax
from drl_mpi.acting.local import LocalActing
from drl_mpi.comm.parameters import Published
from drl_mpi.comm.poller import Poller
from drl_mpi.envs import EnvOptions
from drl_mpi.envs.testing import register
from drl_mpi.experience.rng import make_rng, pack_rng
from drl_mpi.losses import action_log_probs
from drl_mpi.roles.unroller import Pace
from drl_mpi.systems.impala import Impala
from drl_mpi.systems.vtrace_loss import VTraceLoss

LENGTHS = (5, -3, 1, -1, 9)
"""Steps of the games in turn; negative ones end by their time limit."""
GAMMA = 0.9


def rows(batch):
    """[T+1, B, 4]: environment, game, t and the action that led there, of every row."""
    observations = batch.observations.numpy().astype(int)
    if observations.ndim > 3:  # pixels: the newest frame's four channels
        return observations[:, :, -4:, 0, 0]
    return observations[..., -4:]


def game_length(environment, game):
    return LENGTHS[(environment + game) % len(LENGTHS)]


@pytest.mark.parametrize(("num_envs", "width", "length"), [(5, 5, 6), (6, 2, 7), (4, 1, 1)])
@pytest.mark.parametrize("reward_clip", [1.0, 0.0, 2.5])
def test_no_transition_crosses_an_episode(play, num_envs, width, length, reward_clip):
    env_id = register("drl_mpi/Games-v0", lengths=LENGTHS)
    played = play(
        env_id, num_envs=num_envs, width=width, length=length, unrolls=40 // length,
        reward_clip=reward_clip, gamma=GAMMA,
    )  # fmt: skip
    ends, batches = [], played.batches()
    assert len(batches) == 40 // length
    for batch in batches:
        at = rows(batch)
        for t, b in np.ndindex(length, num_envs):
            (env, game, step, _), (env1, game1, step1, action1) = at[t, b], at[t + 1, b]
            assert env == env1 == 30 + b  # every environment in its own column
            over = step == abs(game_length(env, game))
            assert bool(batch.valid[t, b]) == (not over)
            assert bool(batch.firsts[t, b]) == (step == 0)
            assert bool(batch.firsts[t + 1, b]) == (step1 == 0)
            if over:  # into a reset: another game
                assert (game1, step1, action1) == (game + 1, 0, -1)
                assert batch.rewards[t, b] == 0.0
                continue
            assert (game1, step1) == (game, step + 1)
            assert action1 == batch.actions[t, b]
            reward = min(step1, reward_clip) if reward_clip else step1
            assert batch.rewards[t, b] == reward
            ended = step1 == abs(game_length(env, game))
            terminated = ended and game_length(env, game) > 0  # a time limit ends no game
            assert batch.discounts[t, b] == np.float32(0.0 if terminated else GAMMA)
            if ended:
                ends.append(step1 * (step1 + 1) / 2)
    reported = [value for batch in batches for value in batch.episode_returns]
    assert len(ends) > 10
    assert sorted(reported) == sorted(ends)  # unclipped, each game once


def test_unrolls_follow_one_another_without_gap_or_overlap(play):
    env_id = register("drl_mpi/Games-v0", lengths=LENGTHS)
    batches = play(env_id, length=4, unrolls=8).batches()
    for before, after in itertools.pairwise(batches):
        np.testing.assert_array_equal(rows(before)[-1], rows(after)[0])
        np.testing.assert_array_equal(before.firsts[-1], after.firsts[0])


def check_as_acted(played, unrolls):
    """What the learner sees in unroll u, row t is what the actor acted on in call u T + t."""
    length, seen = played.shape.length, played.acting.seen
    batches = played.batches()
    assert len(batches) == unrolls
    assert len(seen) == unrolls * length
    for u, batch in enumerate(batches):
        for t in range(length):
            call = seen[u * length + t]
            np.testing.assert_array_equal(batch.observations[t].numpy(), call["observations"])
            np.testing.assert_array_equal(batch.firsts[t].numpy(), call["first"])
            np.testing.assert_array_equal(batch.actions[t].numpy(), call["actions"])
            np.testing.assert_array_equal(batch.log_probs[t].numpy(), call["log_probs"])
            assert set(batch.versions.tolist()) == {call["version"]}
        if u + 1 < unrolls:  # the bootstrap row is the next unroll's first
            later = seen[(u + 1) * length]["observations"]
            np.testing.assert_array_equal(batch.observations[length].numpy(), later)


@pytest.mark.parametrize(("stack", "length"), [(1, 5), (3, 5), (4, 2), (3, 1)])
@pytest.mark.parametrize("width", [4, 2])
def test_stacks_at_the_learner_are_those_acted_on(play, stack, length, width):
    env_id = register("drl_mpi/Pixels-v0", lengths=LENGTHS, pixels=(5, 6))
    options = EnvOptions(stack=stack)
    played = play(env_id, options=options, width=width, length=length, unrolls=30 // length)
    check_as_acted(played, 30 // length)


def test_atari_stacks_at_the_learner_are_those_acted_on(play):
    options = EnvOptions(stack=4, max_frames_per_episode=130)
    played = play("ALE/Breakout-v5", options=options, num_envs=4, width=2, length=7, unrolls=12)
    check_as_acted(played, 12)
    batches = played.batches()
    resets = sum(int((~b.valid).sum()) for b in batches)
    lives = sum(int((b.firsts[1:] & b.valid).sum()) for b in batches)
    assert resets > 3
    assert lives > 3  # an episode for learning begins, the game goes on: no stack restarts


class Learner:
    """A subscriber to whom a new version of random parameters has come at every unroll."""

    due = False

    def __init__(self, net, unrolls):
        self.stopped = False
        self.vectors = []
        self._generator = torch.Generator().manual_seed(5)
        self._start = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
        self._unrolls = unrolls
        self._looks = 0

    def begin(self):
        pass

    def close(self):
        assert self.stopped

    def newest(self):
        if len(self.vectors) == self._unrolls:
            self.stopped = True
            return None
        noise = torch.randn(self._start.shape, generator=self._generator)
        self.vectors.append((self._start + 0.1 * noise).numpy())
        return Published(len(self.vectors) - 1, self.vectors[-1])


@pytest.mark.parametrize("core", [None, "lstm"])
def test_log_probs_are_those_of_the_version_unrolled_at_the_learner(play, core):
    """With a core, this holds only if the first row's state and every restart are right."""
    env_id = register("drl_mpi/Games-v0", lengths=LENGTHS)
    made = {}

    def make_acting(spec, rng):
        net = nets.make("mlp", spec.observation_shape, spec.num_actions, core=core, seed=1)
        made["net"], made["learner"] = net, Learner(net, 7)
        return LocalActing(net, made["learner"], Poller(1.0), choose_by_softmax, rng)

    played = play(
        env_id, make_acting=make_acting, seed=3, length=5, width=2,
        state_shape=(2, 256) if core else (),
    )  # fmt: skip
    batches = played.batches()
    assert [b.versions.tolist() for b in batches] == [[u] * 4 for u in range(7)]
    state = None
    for version, batch in enumerate(batches):
        nets.load_flat(made["net"], made["learner"].vectors[version])
        with torch.no_grad():
            output, after = made["net"](batch.observations[:-1], batch.firsts[:-1], batch.state)
        expected = action_log_probs(output.logits, batch.actions)
        torch.testing.assert_close(batch.log_probs, expected, atol=2e-5, rtol=1e-5)
        assert expected.std() > 0.01
        if core:
            if version:  # unrolled here = step by step there
                torch.testing.assert_close(batch.state, state, atol=2e-5, rtol=1e-4)
                assert batch.state.abs().max() > 0.1
            else:
                assert not batch.state.any()
            state = after


def slow_loss(batch, output, bootstrap, config):
    """VTraceLoss of each environment by itself, with episodes told by the rows' own numbers."""
    logits = output.logits.detach().double().numpy()
    values = np.concatenate([output.value.detach().double().numpy(), bootstrap[None]])
    at, total = rows(batch), 0.0
    T, B = batch.actions.shape
    for b in range(B):
        target_tp1 = values[T, b]
        for t in reversed(range(T)):
            log_pi = logits[t, b] - np.log(np.exp(logits[t, b]).sum())
            env, game, step, _ = at[t, b]
            if step == abs(game_length(env, game)):  # nothing was decided on this row
                target_tp1 = values[t, b]
                continue
            action = int(batch.actions[t, b])
            ratio = np.exp(log_pi[action] - float(batch.log_probs[t, b]))
            terminated = step + 1 == game_length(env, game)
            discount = 0.0 if terminated else float(np.float32(GAMMA))
            reward = min(step + 1, 1.0)
            error = reward + discount * values[t + 1, b] - values[t, b]
            carried = discount * min(1.0, ratio) * (target_tp1 - values[t + 1, b])
            target = values[t, b] + min(1.0, ratio) * error + carried
            advantage = min(1.0, ratio) * (reward + discount * target_tp1 - values[t, b])
            total -= log_pi[action] * advantage
            total += config.baseline_cost * 0.5 * (target - values[t, b]) ** 2
            total += config.entropy_cost * (np.exp(log_pi) * log_pi).sum()
            target_tp1 = target
    return total


@pytest.mark.parametrize("core", [None, "lstm"])
def test_vtrace_loss_is_that_of_separate_episodes(play, core):
    env_id = register("drl_mpi/Games-v0", lengths=LENGTHS)
    state_shape = (2, 256) if core else ()
    played = play(env_id, num_envs=5, length=12, unrolls=2, gamma=GAMMA, seed=3)
    config = Impala(entropy_cost=0.05)
    batch = played.batches()[1]
    net = nets.make("mlp", (4,), 3, core=core, seed=2)
    if core:
        batch.state = torch.randn(state_shape[0], 5, 256) * 0.3
    kept = {}

    class Spy:
        """The network, whose outputs keep their gradients."""

        def __call__(self, observations, firsts, state):
            output, after = net(observations, firsts, state)
            if torch.is_grad_enabled():
                output.logits.retain_grad()
                output.value.retain_grad()
                kept["output"] = output
            else:
                kept["bootstrap"] = output.value[0].double().numpy()
            return output, after

    loss, _ = VTraceLoss(Spy(), config)(batch)
    loss.backward()
    output = kept["output"]
    expected = slow_loss(batch, output, kept["bootstrap"], config)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    invalid = ~batch.valid
    assert invalid.sum() > 5
    assert not output.logits.grad[invalid].any()  # exactly nothing
    assert not output.value.grad[invalid].any()
    assert (output.logits.grad[batch.valid].abs().sum(-1) > 0).all()
    assert (output.value.grad[batch.valid] != 0).all()


def test_a_time_limit_bootstraps_and_a_termination_does_not(play):
    """Changing V of final observations changes the targets of truncated games only."""
    env_id = register("drl_mpi/Games-v0", lengths=LENGTHS)
    batch = play(env_id, num_envs=5, length=12, unrolls=2, gamma=GAMMA).batches()[1]
    at = torch.from_numpy(rows(batch))
    size = torch.tensor(
        [[game_length(*map(int, row[:2])) for row in line] for line in at.tolist()]
    )  # fmt: skip
    final = at[:, :, 2] == size.abs()
    gradients = {}
    for bonus in (0.0, 50.0):
        value = torch.where(final, bonus, 1.0).requires_grad_()
        logits = torch.zeros(*final.shape, 3, requires_grad=True)

        class Table:
            def __init__(self, logits, value):
                self.parts = logits, value

            def __call__(self, _, firsts, __):
                logits, value = self.parts
                where = slice(None, 12) if len(firsts) == 12 else slice(12, None)
                return nets.PolicyValue(logits[where], value[where]), None

        batch.log_probs.fill_(-np.log(3.0))
        VTraceLoss(Table(logits, value), Impala(entropy_cost=0.0))(batch)[0].backward()
        gradients[bonus] = logits.grad[:12]
    changed = (gradients[0.0] != gradients[50.0]).any(-1)
    for t, b in np.ndindex(12, 5):
        ends_by_limit = bool(final[t + 1, b]) and int(size[t + 1, b]) < 0
        terminates = bool(final[t + 1, b]) and int(size[t + 1, b]) > 0
        if ends_by_limit:
            assert changed[t, b]
        if terminates or final[t, b]:
            assert not changed[t, b]


def test_rng_words_are_those_after_each_unroll(play):
    env_id = register("drl_mpi/Games-v0", lengths=LENGTHS)
    played = play(env_id, num_envs=4, width=2, length=3, unrolls=4)
    np.testing.assert_array_equal(played.tape.sent[-1]["rng"], pack_rng(played.rng))
    again = make_rng(30)
    for u in range(4):
        for _ in range(3):
            again.integers(3, size=4)
            again.uniform(0.1, 0.9, 4)
        for group in range(2):
            np.testing.assert_array_equal(played.tape.sent[2 * u + group]["rng"], pack_rng(again))


def test_time_is_accounted_once_over_the_groups(play):
    env_id = register("drl_mpi/Games-v0", lengths=LENGTHS)
    sent = play(env_id, num_envs=4, width=1, length=3, unrolls=4).tape.sent
    worked = [float(fields["worked_s"]) for fields in sent]
    assert min(worked) > 0.0
    assert worked[0] == worked[1] == worked[3]  # an unroll's time, in equal shares
    assert all(float(fields["waited_s"]) >= 0.0 for fields in sent)


def test_lock_step_asks_for_each_version_and_restarts_at_boundaries(play):
    env_id = register("drl_mpi/Games-v0", lengths=LENGTHS)
    restarts = []
    played = play(
        env_id, length=3, unrolls=7, pace=Pace(updates=2, unrolls=3, start=12), restarts=restarts
    )
    assert played.acting.asked == [12, 14, 16, 18, 20, 22, 24, 26]
    assert restarts == [(0, 2), (9, 3), (18, 4)]  # (acts before it, number)
    first = played.batches()[3]
    assert first.firsts[0].all()
    assert rows(first)[0].tolist() == [[3030 + b, 0, 0, -1] for b in range(4)]


def test_a_free_actor_restarts_once(play):
    env_id, restarts = register("drl_mpi/Games-v0", lengths=LENGTHS), []
    assert play(env_id, restarts=restarts).acting.asked == [None] * 6
    assert restarts == [(0, 0)]


def test_lock_step_acts_with_the_first_version_while_replays_fill(play):
    """No update comes before ``warm_up`` unrolls; restarts count from there."""
    env_id = register("drl_mpi/Games-v0", lengths=LENGTHS)
    restarts = []
    pace = Pace(updates=2, unrolls=3, warm_up=2)
    played = play(env_id, length=3, unrolls=9, pace=pace, restarts=restarts)
    assert played.acting.asked == [0, 0, 0, 2, 4, 6, 8, 10, 12, 14]
    assert restarts == [(0, 0), (15, 1), (24, 2)]  # unrolls 5 and 8, at versions 6 and 12


@pytest.mark.parametrize("start", [0, 6, 60])
@pytest.mark.parametrize("warm_up", [0, 1, 4])
def test_a_resumed_pace_goes_on_where_an_uninterrupted_one_is(start, warm_up):
    """At every boundary: the same versions, the same restarts, without another warm-up."""
    whole, resumed = Pace(2, 3, 0, warm_up), Pace(2, 3, start)
    behind = warm_up + start // 2
    for unroll in range(20):
        assert resumed.version(unroll) == whole.version(behind + unroll)
        if unroll or start:
            assert resumed.epoch(unroll) == whole.epoch(behind + unroll)
    assert resumed.epoch(0) == start // 6


def test_the_stream_is_driven_at_every_step_and_everything_is_closed(play):
    env_id = register("drl_mpi/Games-v0", lengths=LENGTHS)
    played = play(env_id, length=3, unrolls=4)
    assert played.tape.driven == 12
    assert played.acting.closed


def test_behind_servers_lock_step_asks_for_no_number_and_restarts_all_the_same(play):
    """There the order in which they serve fixes the version that acts."""
    env_id, restarts = register("drl_mpi/Games-v0", lengths=LENGTHS), []
    pace = Pace(updates=2, unrolls=3, start=12, by_number=False)
    played = play(env_id, length=3, unrolls=7, pace=pace, restarts=restarts)
    assert played.acting.asked == [None] * 8
    assert restarts == [(0, 2), (9, 3), (18, 4)]
