"""CartPole that writes down its seeds and goes wrong where DRL_TEST_FAULT says.

DRL_TEST_FAULT="raise:2:37": the second environment of rank 2 raises at its 37th step. "nan:2:37":
it gives the reward NaN there. "close:2:0": those of rank 2 do not close, for which others wait no
more than 2 seconds. DRL_TEST_SEEDS: a file that gets a line "rank seed" per seeded reset.
"""

import os
import time
from pathlib import Path

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

from drl_mpi.systems import system

RANK = os.environ.get("OMPI_COMM_WORLD_RANK", "-1")


class Faulty(CartPoleEnv):
    def __init__(self):
        super().__init__()
        kind, rank, step = os.environ.get("DRL_TEST_FAULT", "no:-2:0").split(":")
        self._kind = kind if rank == RANK else "no"
        self._due = int(step)
        self._second = False
        self._steps = 0

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self._second = seed % 4 == 1
            if "DRL_TEST_SEEDS" in os.environ:
                with Path(os.environ["DRL_TEST_SEEDS"]).open("a") as file:
                    file.write(f"{RANK} {seed}\n")
        return super().reset(seed=seed, options=options)

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self._steps += 1
        if self._second and self._steps == self._due:
            if self._kind == "raise":
                raise RuntimeError("the pole broke")
            if self._kind == "nan":
                reward = float("nan")
        return observation, reward, terminated, truncated, info

    def close(self):
        if self._kind == "close":
            time.sleep(60)


gymnasium.register("Faulty-v0", entry_point=Faulty, max_episode_steps=500)

if os.environ.get("DRL_TEST_FAULT", "").startswith("close"):
    system.SILENCE_S = 2.0
