"""An environment that says where it is, for tests: every observation names its own row.

env_id = register(lengths=(5, -3))
rows = make(env_id, 4).reset(seed=100)
rows.frame[2]   # [102, 0, 0, -1]: environment 102, game 0, row 0, no action yet
"""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces

from drl_mpi.envs.base import Array

COUNTING = "drl_mpi/Counting-v0"
ENVIRONMENTS = 65_536
"""Environments are told apart by their seed modulo this: float32 holds such numbers exactly."""


def register(
    env_id: str = COUNTING,
    *,
    lengths: tuple[int, ...] = (5,),
    pixels: tuple[int, int] | None = None,
    num_actions: int = 3,
) -> str:
    """Register a `Counting` environment with these settings in this process; returns env_id.

    An id that is taken is replaced. Raises ValueError for settings that `Counting` refuses.
    """
    settings: dict[str, Any] = {"lengths": lengths, "pixels": pixels, "num_actions": num_actions}
    Counting(**settings)
    gymnasium.registry.pop(env_id, None)
    gymnasium.register(env_id, entry_point=f"{__name__}:Counting", kwargs=settings)
    return env_id


class Counting(gymnasium.Env[Array, Any]):
    """Counts rows. Its observation is four numbers: environment, game, t, action.

    environment: the seed of the last seeded reset, modulo 65,536. game: games since then, from 0.
    t: steps in this game. action: the one that led here, -1 at the first row.
    The reward of the transition into row t is t, so a game of L steps returns L (L + 1) / 2.

    lengths: game g of environment e has abs(lengths[(e + g) % len(lengths)]) steps and ends by
    termination if that entry is positive, by truncation if it is negative.
    pixels: None for a float32 [4] observation; (H, W) for a uint8 image [H, W, 4] whose channels
    are the four numbers modulo 256.
    num_actions: any action does the same.
    Raises ValueError for no lengths, a length of 0, or less than one action.
    """

    def __init__(
        self,
        lengths: tuple[int, ...] = (5,),
        pixels: tuple[int, int] | None = None,
        num_actions: int = 3,
    ) -> None:
        if not lengths or 0 in lengths or num_actions < 1:
            raise ValueError(
                f"lengths {lengths}, num_actions {num_actions}: give at least one length, "
                "none of them 0, and at least one action"
            )
        self._lengths = lengths
        self._pixels = pixels
        self._environment = self._game = self._t = 0
        self.action_space = spaces.Discrete(num_actions)
        if pixels is None:
            self.observation_space = spaces.Box(-1.0, np.inf, (4,), np.float32)
        else:
            self.observation_space = spaces.Box(0, 255, (*pixels, 4), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin the next game, or game 0 of environment `seed`."""
        super().reset(seed=seed, options=options)
        if seed is None:
            self._game += 1
        else:
            self._environment, self._game = seed % ENVIRONMENTS, 0
        self._t = 0
        return self._observation(-1), {}

    def step(self, action: Any) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Go to row t + 1."""
        self._t += 1
        length = self._lengths[(self._environment + self._game) % len(self._lengths)]
        over = self._t >= abs(length)
        return (
            self._observation(int(action)),
            float(self._t),
            over and length > 0,
            over and length < 0,
            {},
        )

    def _observation(self, action: int) -> Array:
        numbers = np.array([self._environment, self._game, self._t, action])
        if self._pixels is None:
            return numbers.astype(np.float32)
        return np.broadcast_to((numbers % 256).astype(np.uint8), (*self._pixels, 4)).copy()
