"""Our Atari rows against AtariVectorEnv(stack_num=4, life_loss_info=True)."""

from types import SimpleNamespace

import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv

from drl_mpi.envs import EnvOptions, build_stacks, make, update_stack

GAMES = 4
STEPS = 320
RECORDED = {
    # game, time limit in frames. Random play ends Breakout by itself; Pong needs the limit.
    "Breakout": ("breakout", 108_000),
    "Pong": ("pong", 602),
}


def stacked(game, num_envs, options):
    """AtariVectorEnv as others use it, with stacks of four and life_loss_info."""
    return AtariVectorEnv(
        game,
        num_envs,
        num_threads=1,
        max_num_frames_per_episode=options.max_frames_per_episode,
        repeat_action_probability=options.sticky,
        full_action_space=options.full_action_space,
        noop_max=options.noop_max,
        use_fire_reset=options.fire_reset,
        reward_clipping=False,
        life_loss_info=True,
    )


@pytest.fixture(scope="module", params=RECORDED)
def record(request):
    """The same random actions played on both; every array is [STEPS + 1, GAMES, ...]."""
    game, limit = RECORDED[request.param]
    options = EnvOptions(max_frames_per_episode=limit, sticky=0.25)
    ours = make(f"ALE/{request.param}-v5", GAMES, options)
    theirs = stacked(game, GAMES, options)
    rng = np.random.default_rng(7)
    row, (observation, info) = ours.reset(11), theirs.reset(seed=11)
    stack = np.empty((GAMES, 4, 84, 84), np.uint8)
    kept = []
    reward, terminated, truncated = np.zeros(GAMES), np.zeros(GAMES, bool), np.zeros(GAMES, bool)
    for t in range(STEPS + 1):
        update_stack(stack, row.frame, row.reset)
        now = {
            **vars(row),
            "stack": stack,
            "their_stack": observation,
            "their_reward": reward,
            "their_terminated": terminated,
            "their_truncated": truncated,
            "their_lives": info["lives"],
            "their_frames_before": info["frame_number"] - info["episode_frame_number"],
        }
        kept.append({name: value.copy() for name, value in now.items()})
        if t < STEPS:
            actions = rng.integers(0, ours.spec.num_actions, GAMES)
            row = ours.step(actions)
            observation, reward, terminated, truncated, info = theirs.step(actions)
    ours.close()
    arrays = {name: np.stack([row[name] for row in kept]) for name in kept[0]}
    return SimpleNamespace(**arrays, name=request.param)


def test_actor_stacks_equal_atari_vector_env(record):
    np.testing.assert_array_equal(record.stack, record.their_stack)
    assert record.reset[1:].sum() >= 4  # else the test says nothing about games that begin


def test_learner_stacks_equal_atari_vector_env(record):
    """Unrolls cut out of the record, each with three rows of history, as the learner gets them."""
    for start in range(3, STEPS - 20, 19):
        rows = slice(start - 3, start + 21)
        stacks = build_stacks(record.frame[rows], record.reset[rows], 4)
        np.testing.assert_array_equal(stacks, record.their_stack[start : start + 21])


def test_reset_rows_are_those_where_the_emulator_began_a_game(record):
    began = np.ones((STEPS + 1, GAMES), np.bool_)
    # Frames played before the present game: constant within a game, and no game has 0 frames.
    began[1:] = np.diff(record.their_frames_before, axis=0) != 0
    np.testing.assert_array_equal(record.reset, began)
    assert not record.reward[record.reset].any()
    assert not record.terminated[record.reset].any()


def test_rewards_and_learning_terminations_are_the_emulators(record):
    np.testing.assert_array_equal(record.reward, record.their_reward)
    np.testing.assert_array_equal(record.terminated, record.their_terminated)
    assert record.reward.dtype == np.float32


def test_first_rows_are_reset_rows_and_lost_lives(record):
    lives = record.their_lives
    lost = np.zeros_like(record.first)
    lost[1:] = (lives[1:] < lives[:-1]) & (lives[1:] > 0) & ~record.reset[1:]
    np.testing.assert_array_equal(record.first, record.reset | lost)
    assert record.terminated[lost].all()
    assert lost.any() == (record.name != "Pong")
    before_reset = np.roll(record.reset, -1, axis=0)
    before_reset[-1] = record.terminated[-1] & ~lost[-1] | record.their_truncated[-1]
    assert not (lost & before_reset).any()  # a lost life goes on


def test_game_over_terminates_and_time_limit_truncates(record):
    ended = ~np.isnan(record.episode_return)
    np.testing.assert_array_equal(ended[:-1], record.reset[1:])
    np.testing.assert_array_equal(ended & ~record.terminated, record.their_truncated)
    if record.name == "Pong":
        assert record.their_truncated.sum() >= 8
        assert not record.terminated.any()
        assert set(record.episode_length[ended]) == {
            151
        }  # 602 frames of 4, the last step cut short
    if record.name == "Breakout":
        assert record.terminated[ended].all()


def test_returns_are_sums_of_raw_rewards_over_whole_games(record):
    checked = 0
    for env in range(GAMES):
        rewards = []
        for t in range(1, STEPS + 1):
            rewards = [] if record.reset[t, env] else [*rewards, float(record.their_reward[t, env])]
            if np.isnan(record.episode_return[t, env]):
                assert record.episode_length[t, env] == 0
                continue
            assert record.episode_return[t, env] == sum(rewards)
            assert record.episode_length[t, env] == len(rewards)
            checked += 1
    assert checked >= 4
