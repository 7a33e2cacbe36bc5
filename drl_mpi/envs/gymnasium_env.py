"""Any Gymnasium environment with discrete actions, in this process: forks and MPI do not mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from drl_mpi.envs.base import Array, EnvError, EnvSpec, Rows, check_actions, check_seed
from drl_mpi.envs.episodes import EpisodeTotals
from drl_mpi.envs.options import EnvOptions

Convert = Callable[[Array], Array]
"""[n, *observation] of the environment's dtype -> [n, *frame_shape] of the spec's dtype."""


class GymnasiumBatch:
    """`num_envs` copies of one Gymnasium environment behind `BatchedEnv`."""

    def __init__(self, env_id: str, num_envs: int, options: EnvOptions) -> None:
        self.num_envs = num_envs
        self._env: Any = SyncVectorEnv(
            [lambda: make_one(env_id)] * num_envs,
            copy=False,
            autoreset_mode=AutoresetMode.NEXT_STEP,
        )
        self.spec, self._convert, self._first_action = _describe(
            env_id, self._env.single_observation_space, self._env.single_action_space, options
        )
        self._totals = EpisodeTotals(num_envs)
        self._ready = False
        self._ended = np.zeros(num_envs, np.bool_)

    def reset(self, seed: int) -> Rows:
        """Restart every environment; number i from seed + i. See `BatchedEnv.reset`."""
        check_seed(seed, self.num_envs)
        if self._env is None:
            raise RuntimeError(f"{self.spec.id} is closed; make a new one")
        observation, _ = self._env.reset(seed=int(seed))
        self._ready = True
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._totals.restart()
        everywhere = np.ones(self.num_envs, np.bool_)
        episode_return, episode_length = self._totals.none()
        return Rows(
            frame=self._convert(observation),
            reward=np.zeros(self.num_envs, np.float32),
            terminated=np.zeros(self.num_envs, np.bool_),
            reset=everywhere,
            first=everywhere.copy(),
            episode_return=episode_return,
            episode_length=episode_length,
        )

    def step(self, actions: Array) -> Rows:
        """Play one action in every environment. See `BatchedEnv.step`."""
        if not self._ready:
            raise RuntimeError(f"{self.spec.id} cannot step: call reset(seed) first")
        checked = check_actions(actions, self.num_envs, self.spec.num_actions)
        observation, raw_reward, terminated, truncated, _ = self._env.step(
            checked + self._first_action
        )
        reset = self._ended
        self._ended = terminated | truncated
        episode_return, episode_length = self._totals.add(raw_reward, reset, self._ended)
        return Rows(
            frame=self._convert(observation),
            reward=raw_reward.astype(np.float32),
            terminated=terminated,
            reset=reset,
            first=reset.copy(),
            episode_return=episode_return,
            episode_length=episode_length,
        )

    def close(self) -> None:
        """Close every environment."""
        if self._env is not None:
            self._env.close()
        self._env = None
        self._ready = False


def gymnasium_spec(env_id: str, options: EnvOptions) -> EnvSpec:
    """Describe an environment by making one. Raises EnvError if it cannot be made or used."""
    env = make_one(env_id)
    try:
        return _describe(env_id, env.observation_space, env.action_space, options)[0]
    finally:
        env.close()


def make_one(env_id: str) -> gymnasium.Env[Any, Any]:
    """Make one environment, or raise EnvError with the reason (often a package that is missing)."""
    try:
        return gymnasium.make(env_id, disable_env_checker=True)
    except Exception as error:  # an environment's constructor may raise anything
        reason = " ".join(str(error).split())
        raise EnvError(f"{env_id} cannot be made: {type(error).__name__}: {reason}") from error


def _describe(
    env_id: str, observation: spaces.Space[Any], action: spaces.Space[Any], options: EnvOptions
) -> tuple[EnvSpec, Convert, int]:
    """Return the spec, the observation converter and the number of the first action."""
    if options.sticky or options.full_action_space:
        raise EnvError(
            f"{env_id} is not an Atari game, so sticky={options.sticky} and full_action_space="
            f"{options.full_action_space} mean nothing; leave them at 0.0 and False"
        )
    if not isinstance(action, spaces.Discrete):
        raise EnvError(
            f"{env_id} has the action space {_brief(action)}; allowed: Discrete; "
            "take another environment, or register this one with a wrapper that makes them discrete"
        )
    frame_shape, frame_dtype, convert = _frames(env_id, observation)
    spec = EnvSpec(
        id=env_id,
        frame_shape=frame_shape,
        frame_dtype=frame_dtype,
        stack=1 if options.stack is None else options.stack,
        num_actions=int(action.n),
        action_repeat=1,
    )
    return spec, convert, int(action.start)


def _frames(env_id: str, space: spaces.Space[Any]) -> tuple[tuple[int, ...], str, Convert]:
    """Choose how observations become frames.

    uint8 boxes of 2 or 3 axes are pixels and become channels-first: (H, W) -> (1, H, W), and
    (H, W, C) -> (C, H, W) unless the first axis is the shortest and so already the channels.
    Other boxes become one float32 vector, in C order; Discrete becomes one-hot.
    """
    if isinstance(space, spaces.Discrete):
        size, start = int(space.n), int(space.start)
        identity = np.eye(size, dtype=np.float32)
        return (size,), "float32", lambda states: identity[states - start]
    if not isinstance(space, spaces.Box):
        raise EnvError(
            f"{env_id} has the observation space {_brief(space)}; allowed: Box and Discrete; "
            "register it with gymnasium.wrappers.FlattenObservation around it"
        )
    shape = space.shape
    if space.dtype == np.uint8 and len(shape) == 2:
        return (1, *shape), "uint8", lambda images: images[:, None]
    if space.dtype == np.uint8 and len(shape) == 3:
        if shape[0] < shape[2]:
            return shape, "uint8", lambda images: images
        return (shape[2], *shape[:2]), "uint8", lambda images: images.transpose(0, 3, 1, 2)
    size = int(np.prod(shape))
    if size == 0:
        raise EnvError(f"{env_id} has empty observations {shape}; allowed: at least one number")
    return (
        (size,),
        "float32",
        lambda values: values.reshape(len(values), size).astype(np.float32, copy=False),
    )


def _brief(space: spaces.Space[Any]) -> str:
    """A space on one line, cut to what an error message can carry."""
    text = " ".join(str(space).split())
    return text if len(text) <= 120 else text[:117] + "..."
