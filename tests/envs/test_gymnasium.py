"""Any Gymnasium environment through the batched interface, with one that names its own rows."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from drl_mpi.envs import EnvOptions, make, probe
from drl_mpi.envs.testing import register


def test_rows_of_terminated_and_truncated_games_one_by_one():
    """Environment 0 plays games of 2 steps (over), 3 (time limit), 2; environment 1 of 3, 2."""
    env = make(register(lengths=(2, -3)), 2)
    row = env.reset(0)
    table = [[row_of(row, i)] for i in range(2)]
    for t in range(8):
        row = env.step(np.array([t % 3, 1]))
        for i in range(2):
            table[i].append(row_of(row, i))
    nan = None
    #    game  t  reward  terminated reset  first  return length
    assert table[0] == [
        (0, 0, 0.0, False, True, True, nan, 0),
        (0, 1, 1.0, False, False, False, nan, 0),
        (0, 2, 2.0, True, False, False, 3.0, 2),
        (1, 0, 0.0, False, True, True, nan, 0),
        (1, 1, 1.0, False, False, False, nan, 0),
        (1, 2, 2.0, False, False, False, nan, 0),
        (1, 3, 3.0, False, False, False, 6.0, 3),
        (2, 0, 0.0, False, True, True, nan, 0),
        (2, 1, 1.0, False, False, False, nan, 0),
    ]
    assert [entry[:2] for entry in table[1]] == [
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1),
    ]  # fmt: skip
    assert [entry[3] for entry in table[1]] == [False] * 6 + [True, False, False]


def row_of(row, i):
    """One environment's row, less its environment number and action."""
    game_return = None if np.isnan(row.episode_return[i]) else float(row.episode_return[i])
    return (
        int(row.frame[i, 1]),
        int(row.frame[i, 2]),
        float(row.reward[i]),
        bool(row.terminated[i]),
        bool(row.reset[i]),
        bool(row.first[i]),
        game_return,
        int(row.episode_length[i]),
    )


def test_frames_name_environment_and_the_action_that_led_there():
    env = make(register(lengths=(3,)), 3)
    np.testing.assert_array_equal(env.reset(100).frame[:, 0], [100, 101, 102])
    for t in range(3):
        actions = np.array([t, 2, 0], np.int32)
        np.testing.assert_array_equal(env.step(actions).frame[:, 3], actions)
    row = env.step(np.array([1, 1, 1]))  # ignored: the games are over
    np.testing.assert_array_equal(row.frame[:, 3], [-1, -1, -1])


def test_dtypes_and_shapes_are_those_of_the_contract():
    env = make(register(), 3)
    for row in (env.reset(0), env.step(np.zeros(3, np.int64))):
        assert {name: value.dtype.name for name, value in vars(row).items()} == {
            "frame": "float32",
            "reward": "float32",
            "terminated": "bool",
            "reset": "bool",
            "first": "bool",
            "episode_return": "float64",
            "episode_length": "int64",
        }
        assert all(value.shape[0] == 3 for value in vars(row).values())


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "FrozenLake-v1"])
def test_the_same_seed_plays_the_same_games_even_from_the_middle_of_others(env_id):
    env = make(env_id, 3)

    def played(batch, seed):
        actions = np.random.default_rng(0).integers(0, batch.spec.num_actions, (80, 3))
        rows = [batch.reset(seed)]
        frames = [rows[0].frame.copy()]
        for a in actions:
            row = batch.step(a)
            frames.append(np.hstack([row.frame, row.reward[:, None], row.reset[:, None]]))
        return frames

    wanted = played(env, 7)
    played(env, 8)
    for a, b in zip(played(env, 7), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(played(make(env_id, 3), 7), wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_cart_pole_equals_one_environment_by_hand():
    env, alone = make("CartPole-v1", 1), gymnasium.make("CartPole-v1")
    np.testing.assert_array_equal(env.reset(3).frame[0], alone.reset(seed=3)[0])
    total, over = 0.0, False
    while not over:
        row = env.step(np.array([1]))
        observation, reward, over, _, _ = alone.step(1)
        total += float(reward)
        np.testing.assert_array_equal(row.frame[0], observation)
    assert (row.terminated[0], row.episode_return[0], row.episode_length[0]) == (True, total, total)


class Odd(gymnasium.Env):
    """Given spaces; observations are samples of the space, actions are remembered."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
        self.last = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.observation_space.seed(seed)
        return self._sample(), {}

    def step(self, action):
        self.last = action
        return self._sample(), 0.25, False, False, {}

    def _sample(self):
        self.sample = self.observation_space.sample()
        return self.sample


@pytest.fixture
def odd():
    """Register an environment with these spaces and return its id."""

    def register_odd(observation_space, action_space=None):
        gymnasium.registry.pop("drl_mpi/Odd-v0", None)
        gymnasium.register(
            "drl_mpi/Odd-v0",
            entry_point=lambda: Odd(observation_space, action_space or spaces.Discrete(2)),
        )
        return "drl_mpi/Odd-v0"

    yield register_odd
    gymnasium.registry.pop("drl_mpi/Odd-v0", None)


def image(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


def vector(*shape, dtype=np.float64):
    return spaces.Box(-1, 1, shape, dtype)


@pytest.mark.parametrize(
    ("space", "shape", "dtype", "convert"),
    [
        (image(6, 5, 3), (3, 6, 5), "uint8", lambda o: o.transpose(2, 0, 1)),
        (image(3, 6, 5), (3, 6, 5), "uint8", lambda o: o),
        (image(6, 5), (1, 6, 5), "uint8", lambda o: o[None]),
        (image(7), (7,), "float32", lambda o: o.astype(np.float32)),
        (vector(4), (4,), "float32", lambda o: o.astype(np.float32)),
        (vector(2, 3), (6,), "float32", lambda o: o.astype(np.float32).reshape(6)),
        (vector(), (1,), "float32", lambda o: np.float32(o).reshape(1)),
        (spaces.Discrete(4, start=2), (4,), "float32", lambda o: np.eye(4)[o - 2]),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_observations_become_frames(odd, space, shape, dtype, convert):
    env = make(odd(space), 2)
    assert (env.spec.frame_shape, env.spec.frame_dtype) == (shape, dtype)
    assert env.spec == probe(env.spec.id)
    for arrive in (lambda: env.reset(5), lambda: env.step(np.array([0, 1]))):
        row = arrive()
        assert row.frame.dtype == dtype
        for i in range(2):
            sample = env._env.envs[i].unwrapped.sample
            np.testing.assert_array_equal(row.frame[i], convert(sample))


def test_actions_that_do_not_begin_at_zero(odd):
    env = make(odd(vector(1), spaces.Discrete(3, start=5)), 2)
    env.reset(0)
    env.step(np.array([0, 2]))
    assert [e.unwrapped.last for e in env._env.envs] == [5, 7]
    with pytest.raises(ValueError, match=r"0 \.\. 2"):
        env.step(np.array([5, 6]))


@pytest.mark.parametrize("actions", [[0, 3], [-1, 0], [0.5, 0.5], [0], [[0, 1]], [True, False]])
def test_invalid_actions_raise_before_anything_moves(actions):
    env = make(register(), 2)
    env.reset(0)
    with pytest.raises(ValueError, match="allowed"):
        env.step(np.array(actions))
    np.testing.assert_array_equal(env.step(np.array([0, 0])).frame[:, 2], [1, 1])


def test_stepping_before_reset_or_after_close_raises():
    env = make(register(), 1)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.array([0]))
    env.reset(0)
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.array([0]))
    with pytest.raises(RuntimeError, match="closed"):
        env.reset(0)


def test_pixels_of_the_counting_environment():
    env = make(register(pixels=(6, 5)), 2, EnvOptions(stack=3))
    assert (env.spec.frame_shape, env.spec.observation_shape) == ((4, 6, 5), (12, 6, 5))
    env.reset(258)
    frame = env.step(np.array([2, 1])).frame
    np.testing.assert_array_equal(frame[:, :, 0, 0], [[2, 0, 1, 2], [3, 0, 1, 1]])
    assert (frame == frame[:, :, :1, :1]).all()


@pytest.mark.parametrize("settings", [{"lengths": ()}, {"lengths": (3, 0)}, {"num_actions": 0}])
def test_the_counting_environment_refuses_impossible_settings(settings):
    with pytest.raises(ValueError, match="at least one"):
        register(**settings)
