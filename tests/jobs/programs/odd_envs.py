"""CartPole that is slow or gives odd rewards, on the rank and in the way that DRL_TEST_ODD says.

DRL_TEST_ODD="sleep:1:0.02": every step on rank 1 takes so many seconds. "nan:1:100", "inf:1:100",
"large:1:100": every so many steps an environment of rank 1 gives such a reward. "blind:1:100": it
is NaN, and nobody on that rank looks whether a gradient is an outlier.
"""

import os
import time

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

KIND, RANK, NUMBER = os.environ.get("DRL_TEST_ODD", "no:-2:1").split(":")
if os.environ.get("OMPI_COMM_WORLD_RANK") != RANK:
    KIND = "no"
if KIND == "blind":
    from drl_mpi.updating.outliers import OutlierFilter

    OutlierFilter.accept = lambda _self, _loss, _norm: True
REWARDS = {"nan": float("nan"), "inf": float("inf"), "large": 1000.0, "blind": float("nan")}


class Odd(CartPoleEnv):
    steps = 0

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        if KIND == "sleep":
            time.sleep(float(NUMBER))
        elif KIND in REWARDS and self.steps % int(NUMBER) == 0:
            reward = REWARDS[KIND]
        return observation, reward, terminated, truncated, info


gymnasium.register("Odd-v0", entry_point=Odd, max_episode_steps=500)
