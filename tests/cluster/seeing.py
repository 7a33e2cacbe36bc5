"""An environment that notes which GPUs its process sees."""

import os
from pathlib import Path

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

rank = os.environ.get("OMPI_COMM_WORLD_RANK", "script")


class Seeing(CartPoleEnv):
    def __init__(self, **options):
        super().__init__(**options)
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "nothing said")
        Path(os.environ["SEEN"], rank).write_text(seen)


gymnasium.register("Seeing-v0", entry_point=Seeing, max_episode_steps=100)
