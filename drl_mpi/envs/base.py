"""The one interface that actors see: a batch of environments, in step, as rows of NumPy arrays.

Row t holds what arrived at time t: the newest frame and the transition *into* it. The action that a
policy picks on row t is given to the next `step`, which returns row t + 1.

    row         reward  terminated  reset  first
    ordinary    r       False       False  False
    life lost   r       True        False  True    an episode for learning ends; the game goes on
    game over   r       True        False  False   the final observation; a reset row follows
    time limit  r       False       False  False   its value bootstraps; a reset row follows
    reset       0       False       True   True    a new game; the transition into it never happened

A game that reaches its time limit in the very step that loses a life arrives as a life-lost row
(terminated and first) and is followed by a reset row like every other end of a game.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from drl_mpi.errors import UsageError

Array = NDArray[Any]


class EnvError(UsageError):
    """An environment cannot be used as asked; the message says why and what to do, in one line."""


@dataclass(frozen=True)
class EnvSpec:
    """What networks, records and replay need to know of an environment. Picklable."""

    id: str
    """The id as the user gave it, such as "ALE/Pong-v5"."""
    frame_shape: tuple[int, ...]
    """Shape of one newest frame: Atari (84, 84), other pixels (C, H, W), vectors (D,)."""
    frame_dtype: str
    """"uint8" for pixels in [0, 255], "float32" for vectors."""
    stack: int
    """Frames per observation, newest last."""
    num_actions: int
    """Actions are the integers 0 .. num_actions - 1."""
    action_repeat: int
    """Emulator frames per step: frames = steps x action_repeat."""

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape that a network sees: the stack is folded into the first axis.

        (84, 84) with stack 4 gives (4, 84, 84); (C, H, W) gives (stack * C, H, W), frame by frame;
        (D,) gives (stack * D,), the oldest frame first.
        """
        if len(self.frame_shape) == 2:
            return (self.stack, *self.frame_shape)
        return (self.stack * self.frame_shape[0], *self.frame_shape[1:])

    @property
    def frame_bytes(self) -> int:
        """Bytes of one newest frame."""
        return math.prod(self.frame_shape) * np.dtype(self.frame_dtype).itemsize

    def as_observation(self, stacks: Array) -> Array:
        """View [..., stack, *frame_shape] as [..., *observation_shape]; no copy if contiguous."""
        lead = stacks.shape[: stacks.ndim - 1 - len(self.frame_shape)]
        return stacks.reshape(*lead, *self.observation_shape)


@dataclass
class Rows:
    """One row of each of n environments. The next `step` may overwrite the arrays: copy to keep."""

    frame: Array
    """[n, *frame_shape] of frame_dtype: the newest frame."""
    reward: NDArray[np.float32]
    """[n] float32: unclipped reward of the transition into this row; 0 where `reset`."""
    terminated: NDArray[np.bool_]
    """[n] bool: that transition ended the episode for learning (game over, or a lost life with
    `EnvOptions.life_loss`): its discount is 0."""
    reset: NDArray[np.bool_]
    """[n] bool: first row of a new game. The action given was ignored and the transition never
    happened, so it is never trained on. Frame stacks restart here."""
    first: NDArray[np.bool_]
    """[n] bool: an episode for learning begins here (reset, or a life was just lost): recurrent
    state restarts."""
    episode_return: NDArray[np.float64]
    """[n] float64: unclipped return of the whole game (all lives) that ended with this row's
    transition, by game over or time limit; NaN where none ended."""
    episode_length: NDArray[np.int64]
    """[n] int64: that game's length in steps (agent decisions), 0 where none ended."""


class BatchedEnv(Protocol):
    """n environments that step together. Not thread-safe; never forks."""

    spec: EnvSpec
    num_envs: int

    def reset(self, seed: int) -> Rows:
        """Restart everything: environment i from seed + i. All rows have reset = first = True.

        The same seed gives the same rows for the same actions, whatever was played before.
        Raises ValueError unless 0 <= seed and seed + num_envs - 1 <= 2**31 - 1.
        """

    def step(self, actions: Array) -> Rows:
        """Play one action in every environment.

        actions: [n] of any integer dtype, each in 0 .. num_actions - 1 (ignored where the last row
        ended a game). Raises ValueError at once for anything else, before any environment moves.
        """

    def close(self) -> None:
        """Free the environments; a second call does nothing."""


MAX_SEED = 2**31 - 1
"""The largest seed that AtariVectorEnv takes: an int32. Negative ones would be drawn at random."""


def check_seed(seed: int, num_envs: int) -> None:
    """Raise ValueError unless seeds seed .. seed + num_envs - 1 fit a non-negative int32."""
    if not 0 <= seed <= MAX_SEED - num_envs + 1:
        raise ValueError(
            f"seed {seed} does not fit: with {num_envs} environments it must be in 0 .. "
            f"{MAX_SEED - num_envs + 1}; draw it with drl_mpi.envs.seed_for"
        )


def check_actions(actions: Array, num_envs: int, num_actions: int) -> NDArray[np.int64]:
    """Return actions as a contiguous int64 [n] array, or raise ValueError that says what is wrong.

    AtariVectorEnv waits for ever on an action out of range, so nothing unchecked may reach it.
    """
    actions = np.asarray(actions)
    if not np.issubdtype(actions.dtype, np.integer):
        raise ValueError(
            f"actions have dtype {actions.dtype}; allowed: integers; cast them to int64"
        )
    if actions.shape != (num_envs,):
        raise ValueError(
            f"actions have shape {actions.shape}; allowed: ({num_envs},), one per environment"
        )
    low, high = int(actions.min()), int(actions.max())
    if low < 0 or high >= num_actions:
        bad = low if low < 0 else high
        where = int(np.flatnonzero(actions == bad)[0])
        raise ValueError(
            f"action {bad} for environment {where}; allowed: 0 .. {num_actions - 1}; "
            "check that the policy head has num_actions outputs"
        )
    return np.ascontiguousarray(actions, dtype=np.int64)
