"""Ids, specs and options: what can be used, and what the user reads when it cannot."""

import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from drl_mpi.envs import EnvError, EnvOptions, EnvSpec, make, probe
from drl_mpi.envs.testing import register
from drl_mpi.errors import UsageError


def test_atari_spec():
    spec = probe("ALE/Pong-v5")
    assert spec == EnvSpec("ALE/Pong-v5", (84, 84), "uint8", 4, 6, 4)
    assert spec.observation_shape == (4, 84, 84)
    assert spec.frame_bytes == 84 * 84
    env = make("ALE/Pong-v5", 1)
    assert env.spec == spec
    assert env.reset(0).frame.shape == (1, 84, 84)
    env.close()


def test_atari_options_show_in_the_spec():
    spec = probe("ALE/Pong-v5", EnvOptions(stack=2, action_repeat=5, full_action_space=True))
    assert (spec.stack, spec.action_repeat, spec.num_actions) == (2, 5, 18)


def test_roms_are_named_by_the_registry():
    assert probe("ALE/SpaceInvaders-v5").num_actions == 6


def test_vector_spec_and_its_stack():
    assert probe("CartPole-v1") == EnvSpec("CartPole-v1", (4,), "float32", 1, 2, 1)
    assert probe("CartPole-v1").observation_shape == (4,)
    assert probe("CartPole-v1", EnvOptions(stack=3)).observation_shape == (12,)
    assert probe("CartPole-v1").frame_bytes == 16


def test_specs_and_options_survive_pickling():
    for value in (probe("CartPole-v1"), EnvOptions(sticky=0.25, stack=2)):
        assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize("frame", [(5, 6), (2, 5, 6), (7,)])
def test_as_observation_folds_the_stack_frame_by_frame(frame):
    spec = EnvSpec("x", frame, "float32", 3, 2, 1)
    stacks = np.arange(2 * 4 * 3 * np.prod(frame)).reshape(2, 4, 3, *frame)
    observations = spec.as_observation(stacks)
    assert observations.shape == (2, 4, *spec.observation_shape)
    assert np.shares_memory(observations, stacks)
    np.testing.assert_array_equal(observations.ravel(), stacks.ravel())


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("Pong-v5", "ALE/Pong-v5"),
        ("ALE/Brakeout-v5", "ALE/Breakout-v5"),
        ("spaceinvaders", "ALE/SpaceInvaders-v5"),
        ("Cartpole-v1", "CartPole-v1"),
        ("Nonsense-v0", "check the name"),
        ("PongNoFrameskip-v4", "ALE/Pong-v5"),
        ("Pendulum-v1", "Discrete"),
        ("Blackjack-v1", "Tuple"),
        ("no_such_module:Name-v0", "no_such_module"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_helpful_line(env_id, expected):
    for attempt in (probe, lambda name: make(name, 2)):
        with pytest.raises(EnvError, match=expected) as caught:
            attempt(env_id)
        message = str(caught.value)
        assert "\n" not in message
        assert "allowed" in message
        assert env_id.rpartition(":")[2] in message or env_id in message
        assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize("action", [spaces.MultiDiscrete([2, 2]), spaces.Box(-1, 1, (2,))])
def test_other_action_spaces_are_refused(action):
    class Other(gymnasium.Env):
        observation_space, action_space = spaces.Box(-1, 1, (2,)), action

    gymnasium.register("drl_mpi/Other-v0", entry_point=Other)
    with pytest.raises(EnvError, match="action space"):
        probe("drl_mpi/Other-v0")
    gymnasium.registry.pop("drl_mpi/Other-v0")


def test_an_environment_that_cannot_be_made_says_why():
    def broken():
        raise OSError("two\nlines")

    gymnasium.register("drl_mpi/Broken-v0", entry_point=broken)
    with pytest.raises(EnvError, match="OSError: two lines"):
        probe("drl_mpi/Broken-v0")
    gymnasium.registry.pop("drl_mpi/Broken-v0")


def test_a_module_in_the_id_is_imported_first(tmp_path, monkeypatch):
    (tmp_path / "mine_for_test.py").write_text(
        "from gymnasium import register\n"
        "register('Mine-v0', entry_point='drl_mpi.envs.testing:Counting')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = probe("mine_for_test:Mine-v0")
    assert (spec.id, spec.num_actions) == ("mine_for_test:Mine-v0", 3)
    env = make("mine_for_test:Mine-v0", 2)
    assert env.reset(4).frame.shape == (2, 4)
    gymnasium.registry.pop("Mine-v0")


@pytest.mark.parametrize(
    "options",
    [
        {"sticky": 1.0},
        {"sticky": -0.1},
        {"sticky": float("nan")},
        {"noop_max": -1},
        {"max_frames_per_episode": 0},
        {"action_repeat": 0},
        {"stack": 0},
        {"threads": 0},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(EnvError, match="allowed") as caught:
        EnvOptions(**options)
    assert next(iter(options)) in str(caught.value)


@pytest.mark.parametrize("options", [{"sticky": 0.25}, {"full_action_space": True}])
def test_atari_settings_are_refused_elsewhere(options):
    with pytest.raises(EnvError, match="not an Atari game"):
        probe("CartPole-v1", EnvOptions(**options))


def test_no_environments_are_refused():
    with pytest.raises(EnvError, match="num_envs"):
        make(register(), 0)
