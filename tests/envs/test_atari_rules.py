"""Rules of the Atari batch: scores as by plain ALE, restarts, seeds, lives, settings, refusals."""

import inspect

import ale_py
import numpy as np
import pytest
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv

import drl_mpi.envs.atari as atari
from drl_mpi.envs import EnvOptions, make, seed_for


@pytest.fixture
def batch():
    """Make batches as batch("Pong", 2, sticky=0.25), closed at the end."""
    made = []

    def make_batch(name, num_envs, **options):
        made.append(make(f"ALE/{name}-v5", num_envs, EnvOptions(**options)))
        return made[-1]

    yield make_batch
    for env in made:
        env.close()


def test_return_and_length_equal_plain_ale(batch):
    """One emulator driven by hand: no no-ops, no sticky actions, no preprocessing."""
    env = batch("SpaceInvaders", 1, noop_max=0, fire_reset=False)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("random_seed", 5)
    ale.loadROM(roms.get_rom_path("space_invaders"))
    meaning = ale.getMinimalActionSet()
    rng = np.random.default_rng(3)
    env.reset(5)
    score, steps, row = 0, 0, None
    while not ale.game_over():
        action = int(rng.integers(len(meaning)))
        row = env.step(np.array([action]))
        steps += 1
        for _ in range(4):
            score += ale.act(meaning[action])
            if ale.game_over():
                break
        assert np.isnan(row.episode_return[0]) == (not ale.game_over())
    assert row.episode_return[0] == score > 10
    assert row.episode_length[0] == steps


def play(env, steps, rng, rows=None):
    for _ in range(steps):
        row = env.step(rng.integers(0, env.spec.num_actions, env.num_envs))
        if rows is not None:
            rows.append({name: value.copy() for name, value in vars(row).items()})


def trajectory(env, seed, steps=90):
    row = env.reset(seed)
    rows = [{name: value.copy() for name, value in vars(row).items()}]
    play(env, steps, np.random.default_rng(0), rows)
    return rows


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def differ(one, other):
    return any(not np.array_equal(a["frame"], b["frame"]) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["Breakout", "Pong"])
def test_reset_restarts_everything_from_the_seed(batch, name):
    options = {"sticky": 0.25, "max_frames_per_episode": 160}
    env = batch(name, 2, **options)
    wanted = trajectory(env, 21)
    assert sum(row["reset"].any() for row in wanted) > 2
    assert_same(trajectory(env, 21), wanted)
    env.reset(99)
    play(env, 37, np.random.default_rng(5))  # leaves off in the middle of games
    assert_same(trajectory(env, 21), wanted)
    assert differ(trajectory(env, 22), wanted)
    assert_same(trajectory(batch(name, 2, **options), 21), wanted)


def test_environment_i_plays_from_seed_plus_i(batch):
    both, second = batch("Breakout", 2, sticky=0.25), batch("Breakout", 1, sticky=0.25)
    both.reset(30), second.reset(31)
    for action in np.random.default_rng(1).integers(0, 4, 60):
        pair, single = both.step(np.full(2, action)), second.step(np.full(1, action))
        np.testing.assert_array_equal(pair.frame[1], single.frame[0])


def test_reset_after_an_interrupted_step_is_a_full_restart(batch, monkeypatch):
    env = batch("Breakout", 2)
    wanted = trajectory(env, 4, 40)

    class InterruptedStep(BaseException):
        """Like KeyboardInterrupt, which would end pytest."""

    def interrupted(actions):
        env._env.send(actions)
        raise InterruptedStep

    with monkeypatch.context() as patch:
        patch.setattr(env._env, "step", interrupted)
        with pytest.raises(InterruptedStep):
            env.step(np.zeros(2, np.int64))
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(2, np.int64))
    assert_same(trajectory(env, 4, 40), wanted)


def test_actors_see_different_games(batch):
    env = batch("Pong", 4, sticky=0.25)
    seen = []
    for actor in range(3):
        env.reset(seed_for(0, actor, 4))
        actions = np.random.default_rng(0).integers(0, 6, 40)  # the same in all environments
        frames = np.stack([env.step(np.full(4, action)).frame for action in actions])
        seen += [frames[:, i].tobytes() for i in range(4)]
    assert len(set(seen)) == 12


INVALID_ACTIONS = [
    np.array([0, 4]),
    np.array([-1, 0]),
    np.array([2**40, 0]),
    np.array([0.0, 1.0]),
    np.array([True, False]),
    np.array([0]),
    np.array([[0, 1]]),
    np.array(0),
]


def test_invalid_actions_raise_before_anything_moves(batch):
    env, twin = batch("Breakout", 2), batch("Breakout", 2)
    env.reset(1), twin.reset(1)
    for actions in INVALID_ACTIONS:
        with pytest.raises(ValueError, match="allowed"):
            env.step(actions)
        row, other = env.step(np.array([1, 3], np.uint8)), twin.step(np.array([1, 3]))
        np.testing.assert_array_equal(row.frame, other.frame)


def first_lost_life(env):
    env.reset(0)
    for t in range(1, 400):
        row = env.step(np.array([t % 4]))
        if row.terminated[0]:
            return t, row
    raise AssertionError("no life lost in 400 steps")


def test_time_limit_on_the_step_that_loses_a_life(batch):
    when, row = first_lost_life(batch("Breakout", 1, noop_max=0))
    assert np.isnan(row.episode_return[0])
    env = batch("Breakout", 1, max_frames_per_episode=4 * when, noop_max=0)
    again, row = first_lost_life(env)
    assert again == when
    assert (row.terminated[0], row.first[0], row.reset[0]) == (True, True, False)
    assert row.episode_length[0] == when
    row = env.step(np.array([0]))
    assert (row.terminated[0], row.first[0], row.reset[0]) == (False, True, True)


def test_a_new_game_with_fewer_lives_than_the_last_is_no_lost_life(batch, monkeypatch):
    """The last game may have won lives before its time limit."""
    env = batch("Breakout", 1)
    env.reset(0)
    frame, yes, no = np.zeros((1, 1, 84, 84), np.uint8), np.array([True]), np.array([False])
    answers = iter([(no, 6), (yes, 6), (no, 5), (no, 4)])  # truncated, lives

    def step(_):
        truncated, lives = next(answers)
        return frame, np.zeros(1, np.int32), no, truncated, {"lives": np.array([lives])}

    monkeypatch.setattr(env._env, "step", step)
    rows = [env.step(np.array([0])) for _ in range(4)]
    assert [bool(row.reset[0]) for row in rows] == [False, False, True, False]
    assert [bool(row.terminated[0]) for row in rows] == [False, False, False, True]


def test_without_life_loss_only_game_over_terminates(batch):
    env = batch("Breakout", 2, life_loss=False)
    rows = trajectory(env, 0, 400)
    for row in rows:
        np.testing.assert_array_equal(row["terminated"], ~np.isnan(row["episode_return"]))
        np.testing.assert_array_equal(row["first"], row["reset"])
    assert sum(row["terminated"].sum() for row in rows) >= 4


def test_every_setting_of_atari_vector_env_is_passed(monkeypatch):
    passed = {}
    monkeypatch.setattr(atari, "AtariVectorEnv", lambda _, __, **settings: passed.update(settings))
    options = EnvOptions(
        sticky=0.25,
        full_action_space=True,
        noop_max=7,
        fire_reset=False,
        max_frames_per_episode=123,
        action_repeat=3,
        threads=2,
    )
    make("ALE/Pong-v5", 8, options)
    known = inspect.signature(AtariVectorEnv.__init__).parameters.values()
    assert set(passed) == {p.name for p in known if p.kind is p.KEYWORD_ONLY}
    chosen = {
        "repeat_action_probability": 0.25,
        "full_action_space": True,
        "noop_max": 7,
        "use_fire_reset": False,
        "max_num_frames_per_episode": 123,
        "frameskip": 3,
        "num_threads": 2,
        "reward_clipping": False,
        "episodic_life": False,
    }
    assert chosen.items() <= passed.items()


def test_seeds_that_ale_does_not_take_are_refused(batch):
    env = batch("Pong", 3)
    for seed in (-1, 2**31 - 2, 2**31, 2**70):
        with pytest.raises(ValueError, match="must be in"):
            env.reset(seed)
    assert env.reset(np.int64(2**31 - 3)).reset.all()


def test_stepping_before_reset_or_after_close_raises_instead_of_hanging(batch):
    env = batch("Pong", 1)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.array([0]))
    env.reset(0)
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.array([0]))
    with pytest.raises(RuntimeError, match="closed"):
        env.reset(0)
