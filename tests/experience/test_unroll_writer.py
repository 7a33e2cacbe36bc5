"""The unroll writer against a reference that knows all rows of an environment at once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_mpi.comm.record import Slot
from drl_mpi.envs import EnvSpec
from drl_mpi.envs.base import Rows
from drl_mpi.experience import Batch, UnrollShape
from drl_mpi.experience.unroll_writer import UnrollWriter
from drl_mpi.nets import PolicyValue
from drl_mpi.systems.actor_critic_loss import ActorCriticLoss
from drl_mpi.systems.impala import Impala
from drl_mpi.systems.vtrace_loss import VTraceLoss

GAMMA = 0.9
FRAMES = {"pixels": ((2, 3), "uint8"), "vectors": ((3,), "float32")}
WRITTEN = (
    "frames", "resets", "firsts", "actions", "rewards", "discounts", "log_probs", "state",
    "episode_returns", "episode_lengths",
)  # fmt: skip


@st.composite
def plays(draw):
    """What n environments go through in a few unrolls, with restarts of all of them."""
    width = draw(st.integers(1, 3))
    records = draw(st.integers(1, 3))
    length = draw(st.integers(1, 6))
    unrolls = draw(st.integers(1, 5))
    return SimpleNamespace(
        width=width,
        envs=width * records,
        length=length,
        unrolls=unrolls,
        stack=draw(st.integers(1, 5)),
        frames=draw(st.sampled_from(sorted(FRAMES))),
        core=draw(st.booleans()),
        reward_clip=draw(st.sampled_from([0.0, 0.5, 1.0])),
        ends=draw(st.sampled_from([0.1, 0.4, 0.9])),
        restarts=draw(st.sets(st.integers(1, max(1, unrolls * length - 1)), max_size=2)),
        seed=draw(st.integers(0, 10_000)),
    )


def draw_rows(rng, play):
    """A row with anything that the contract allows."""
    n, (shape, dtype) = play.envs, FRAMES[play.frames]
    reset = rng.random(n) < play.ends
    ended = rng.random(n) < play.ends
    return Rows(
        frame=rng.integers(1, 255, (n, *shape)).astype(dtype),
        reward=rng.normal(size=n).astype(np.float32),
        terminated=rng.random(n) < play.ends,
        reset=reset,
        first=reset | (rng.random(n) < 0.3),
        episode_return=np.where(ended, rng.normal(size=n), np.nan),
        episode_length=np.where(ended, rng.integers(1, 99, n), 0),
    )


def overwrite(rows):
    """Rows are valid until the next ones only."""
    for values in vars(rows).values():
        values[...] = 1


def copy_of(rows):
    return Rows(**{name: values.copy() for name, values in vars(rows).items()})


def stack_of(seen, at, env, stack):
    """The frames of an observation, oldest first: none from before the game, or a restart."""
    frames = []
    for back in range(stack):
        frames.insert(0, seen[at - back].frame[env])
        if seen[at - back].reset[env] or at == back:
            break
    missing = stack - len(frames)
    return [np.zeros_like(frames[0])] * missing + frames


def reference(play, seen, start, decided, state, env):
    """An environment's fields of the unroll whose row 0 is ``seen[start]``, one by one."""
    shape, dtype = FRAMES[play.frames]
    rows = [seen[at] if at >= 0 else None for at in range(start - play.stack + 1, start)]
    rows += seen[start : start + play.length + 1]
    arrived = seen[start + 1 : start + play.length + 1]
    clip = play.reward_clip or np.inf
    return {
        "frames": [np.zeros(shape, dtype) if row is None else row.frame[env] for row in rows],
        "resets": [True if row is None else row.reset[env] for row in rows],
        "firsts": [row.first[env] for row in seen[start : start + play.length + 1]],
        "actions": [actions[env] for actions, _ in decided],
        "log_probs": [log_probs[env] for _, log_probs in decided],
        "rewards": [min(max(row.reward[env], -clip), clip) for row in arrived],
        "discounts": [np.float32(0.0 if row.terminated[env] else GAMMA) for row in arrived],
        "episode_returns": [row.episode_return[env] for row in arrived],
        "episode_lengths": [row.episode_length[env] for row in arrived],
        "state": [] if state is None else list(state[:, env]),
    }


@settings(max_examples=60)
@given(plays())
def test_unrolls_are_what_happened(play):
    frame_shape, dtype = FRAMES[play.frames]
    spec = EnvSpec("any", frame_shape, dtype, play.stack, 4, 1)
    shape = UnrollShape(spec, play.length, play.width, (2, 3) if play.core else ())
    writer = UnrollWriter(shape, play.envs, gamma=GAMMA, reward_clip=play.reward_clip)
    assert writer.records * play.width == play.envs
    rng = np.random.default_rng(play.seed)
    seen, decided, start, slots, state, row = [], [], 0, [], None, None
    given_away = []
    for at in range(play.unrolls * play.length + 1):
        if row is None or at in play.restarts:
            writer.restart()
            row = draw_rows(rng, play)
            row.reset[:] = row.first[:] = True
            seen, decided, start, slots = [copy_of(row)], [], 0, []
        if not slots:
            slots = [Slot(shape.record()) for _ in range(writer.records)]
            for slot in slots:
                slot.buffer.fill(0xAB)
            state = rng.normal(size=(2, play.envs, 3)).astype(np.float32) if play.core else None
            writer.begin(slots, state)
        writer.observe(row)
        for env in range(play.envs):
            expected = np.stack(stack_of(seen, len(seen) - 1, env, play.stack))
            np.testing.assert_array_equal(
                writer.observations[env], expected.reshape(spec.observation_shape)
            )
        assert writer.t == len(decided)
        actions = rng.integers(0, 4, play.envs)
        log_probs = rng.normal(size=play.envs).astype(np.float32)
        writer.decide(actions, log_probs)
        decided.append((actions.copy(), log_probs.copy()))
        for values in (actions, log_probs):
            values[...] = 0
        overwrite(row)
        row = draw_rows(rng, play)
        seen.append(copy_of(row))
        writer.follow(row)
        assert writer.complete == (len(decided) == play.length)
        if writer.complete:
            writer.finish(row)
            for env in range(play.envs):
                expected = reference(play, seen, start, decided, state, env)
                fields = slots[env // play.width].fields
                assert set(expected) == set(WRITTEN)
                for name, values in expected.items():
                    column = fields[name]
                    if column.ndim > 1:
                        column = column[:, env % play.width]
                    if values:
                        np.testing.assert_array_equal(column, np.stack(values), err_msg=name)
            for slot in slots:  # given away: neither written to nor read from again
                slot.buffer.fill(0x55)
            given_away += slots
            slots, start, decided = [], start + play.length, []
    assert all((slot.buffer == 0x55).all() for slot in given_away)


SPEC = EnvSpec("any", (3,), "float32", 1, 3, 1)
T = 5
ENDS = {
    # Of the row that the transition leads to: terminated, first.
    "game over": (True, False),
    "life lost": (True, True),
    "time limit": (False, False),
}


def unroll_with_an_end(kind, at, reward):
    """An unroll of one environment in which nothing is rewarded but transition ``at``, an end."""
    terminated, first = ENDS[kind]
    shape = UnrollShape(SPEC, T, 1)
    writer = UnrollWriter(shape, 1, gamma=GAMMA, reward_clip=0.0)
    slot = Slot(shape.record())

    def row(t):
        into_reset = t == at + 2 and kind != "life lost"
        ends = t == at + 1
        return Rows(
            frame=np.full((1, 3), t, np.float32),
            reward=np.full(1, reward if ends else 0.0, np.float32),
            terminated=np.full(1, ends and terminated),
            reset=np.full(1, into_reset),
            first=np.full(1, into_reset or (ends and first)),
            episode_return=np.full(1, reward if ends else np.nan),
            episode_length=np.full(1, at + 1 if ends else 0),
        )

    writer.begin([slot], None)
    for t in range(T):
        writer.observe(row(t))
        writer.decide(np.array([t % 3]), np.log(np.full(1, 1 / 3, np.float32)))
        writer.follow(row(t + 1))
    writer.finish(row(T))
    batch = Batch(shape)
    batch.begin()
    batch.write(0, slot.fields)
    batch.note(slot.fields)
    return batch


class Table:
    """A uniform policy, and 10 + row as the values; both keep their gradients."""

    def __init__(self):
        self.logits = torch.zeros(T + 1, 1, 3, requires_grad=True)
        self.values = (10.0 + torch.arange(T + 1.0)[:, None]).requires_grad_()

    def __call__(self, observations, _firsts, _state):
        rows = observations[:, 0, 0].long()
        return PolicyValue(self.logits[rows], self.values[rows]), None


def actor_critic(net):
    return ActorCriticLoss(net, 0.5, 0.0)


def vtrace(net):
    return VTraceLoss(net, Impala(baseline_cost=0.5, entropy_cost=0.0))


@pytest.mark.parametrize("make_loss", [actor_critic, vtrace], ids=["n-step", "V-trace"])
@pytest.mark.parametrize("at", [0, 2, T - 2, T - 1])
@pytest.mark.parametrize("kind", ENDS)
def test_the_transition_that_ends_an_episode_is_learnt_from(kind, at, make_loss):
    """With its reward: GA3C's first versions forgot it."""
    gradients = {}
    for reward in (0.0, 7.0):
        batch = unroll_with_an_end(kind, at, reward)
        assert batch.rewards[at, 0] == reward
        assert batch.valid[at, 0]
        assert batch.episode_returns == [reward]
        net = Table()
        make_loss(net)(batch)[0].backward()
        gradients[reward] = net.logits.grad[:T, 0], net.values.grad[:T, 0]
    goes_on = GAMMA * (10.0 + at + 1) if kind == "time limit" else 0.0
    for reward, (logits, values) in gradients.items():
        advantage = reward + goes_on - (10.0 + at)
        chosen = np.eye(3)[at % 3] - 1 / 3
        np.testing.assert_allclose(logits[at], -advantage * chosen, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(values[at], -0.5 * advantage, rtol=1e-4, atol=1e-4)
    for before, after in zip(gradients[0.0], gradients[7.0]):
        changed = (before != after).reshape(T, -1).any(-1).tolist()
        assert changed == [t <= at for t in range(T)], "and what led there, and nothing after it"
