"""Atari through ALE's own vectorised emulator, AtariVectorEnv (C++ threads, releases the GIL).

What its source and our tests (tests/envs/test_atari*.py) say about it, ale-py 0.12.1:
- NEXT_STEP autoreset: the step after the end of a game ignores its action and returns the first
  frame of the next game with reward 0.
- `life_loss_info=True` marks a lost life as terminated, which then cannot be told from a game over
  and hides a time limit on the same step. We leave it off, so that terminated means game over and
  nothing else, and find lost lives from the life counter by the same rule: 0 < lives < before.
- `reset(seed)` reloads the ROM and reseeds everything, so it is a full restart.
- The time limit counts emulator frames after the no-op start.
"""

from __future__ import annotations

from typing import Any

import ale_py
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv

from drl_mpi.envs.base import Array, EnvError, EnvSpec, Rows, check_actions, check_seed
from drl_mpi.envs.episodes import EpisodeTotals
from drl_mpi.envs.options import EnvOptions

HEIGHT = WIDTH = 84
"""Size of the grey image, in pixels (Mnih et al. 2015, Methods)."""


class AtariBatch:
    """`num_envs` games of one Atari title behind `BatchedEnv`; frames are [n, 84, 84] uint8."""

    def __init__(self, env_id: str, game: str, num_envs: int, options: EnvOptions) -> None:
        self.spec = atari_spec(env_id, game, options)
        self.num_envs = num_envs
        self._game = game
        self._options = options
        self._life_loss = options.life_loss
        self._env: Any = self._build()
        self._totals = EpisodeTotals(num_envs)
        self._ready = False
        self._midway = False  # a call to the emulator began and did not return
        self._lives = np.zeros(num_envs, np.int32)
        self._ended = np.zeros(num_envs, np.bool_)

    def _build(self) -> AtariVectorEnv:
        """Every setting is passed: AtariVectorEnv's defaults clip rewards and take all cores."""
        options = self._options
        return AtariVectorEnv(
            self._game,
            self.num_envs,
            batch_size=0,
            num_threads=min(options.threads, self.num_envs),
            thread_affinity_offset=-1,
            max_num_frames_per_episode=options.max_frames_per_episode,
            repeat_action_probability=options.sticky,
            full_action_space=options.full_action_space,
            continuous=False,
            continuous_action_threshold=0.5,
            autoreset_mode="NextStep",
            img_height=HEIGHT,
            img_width=WIDTH,
            grayscale=True,
            stack_num=1,
            frameskip=options.action_repeat,
            maxpool=True,
            noop_max=options.noop_max,
            episodic_life=False,
            life_loss_info=False,
            reward_clipping=False,
            use_fire_reset=options.fire_reset,
        )

    def reset(self, seed: int) -> Rows:
        """Restart every game; environment i from seed + i. See `BatchedEnv.reset`."""
        check_seed(seed, self.num_envs)
        if self._env is None:
            raise RuntimeError(f"{self.spec.id} is closed; make a new one")
        if self._midway:
            # A step was interrupted (KeyboardInterrupt) between its send and its receive: its late
            # results would be taken for this reset's.
            self._env = self._build()
        self._midway = True
        observation, info = self._env.reset(seed=int(seed))
        self._midway = False
        self._ready = True
        self._lives = info["lives"]
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._totals.restart()
        everywhere = np.ones(self.num_envs, np.bool_)
        episode_return, episode_length = self._totals.none()
        return Rows(
            frame=observation[:, 0],
            reward=np.zeros(self.num_envs, np.float32),
            terminated=np.zeros(self.num_envs, np.bool_),
            reset=everywhere,
            first=everywhere.copy(),
            episode_return=episode_return,
            episode_length=episode_length,
        )

    def step(self, actions: Array) -> Rows:
        """Play one action of `action_repeat` frames in every game. See `BatchedEnv.step`."""
        if not self._ready or self._midway:
            raise RuntimeError(f"{self.spec.id} cannot step: call reset(seed) first")
        checked = check_actions(actions, self.num_envs, self.spec.num_actions)
        self._midway = True
        observation, raw_reward, game_over, truncated, info = self._env.step(checked)
        self._midway = False
        reset = self._ended
        lives = info["lives"]
        lost = (lives > 0) & (lives < self._lives) & ~reset
        if not self._life_loss:
            lost[:] = False
        self._lives = lives
        self._ended = game_over | truncated
        episode_return, episode_length = self._totals.add(raw_reward, reset, self._ended)
        return Rows(
            frame=observation[:, 0],
            reward=raw_reward.astype(np.float32),
            terminated=game_over | lost,
            reset=reset,
            first=reset | lost,
            episode_return=episode_return,
            episode_length=episode_length,
        )

    def close(self) -> None:
        """End the emulator's threads."""
        self._env = None
        self._ready = False


def atari_spec(env_id: str, game: str, options: EnvOptions) -> EnvSpec:
    """Describe a game from one emulator, without playing. Raises EnvError if it has no ROM."""
    path = roms.get_rom_path(game)
    if path is None:
        raise EnvError(
            f"{env_id} needs the ROM {game!r}, which ale-py {ale_py.__version__} does not have; "
            "allowed: games whose ROM it has; take another game"
        )
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.loadROM(path)
    actions = ale.getLegalActionSet() if options.full_action_space else ale.getMinimalActionSet()
    return EnvSpec(
        id=env_id,
        frame_shape=(HEIGHT, WIDTH),
        frame_dtype="uint8",
        stack=4 if options.stack is None else options.stack,
        num_actions=len(actions),
        action_repeat=options.action_repeat,
    )
