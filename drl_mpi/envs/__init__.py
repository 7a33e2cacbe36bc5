"""Atari and any Gymnasium environment with discrete actions, as one batch of NumPy arrays.

spec = probe("ALE/Pong-v5", EnvOptions())
env = make("ALE/Pong-v5", 32, EnvOptions(sticky=0.25))
rows = env.reset(seed_for(seed, actor, 32))
rows = env.step(actions)

Names are loaded when they are used: a parameter server reads options and loads no emulator.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drl_mpi.envs.base import BatchedEnv, EnvError, EnvSpec, Rows
    from drl_mpi.envs.catalogue import make, probe
    from drl_mpi.envs.options import EnvOptions
    from drl_mpi.envs.seeds import seed_for
    from drl_mpi.envs.stacking import build_stacks, update_stack

__all__ = [
    "BatchedEnv",
    "EnvError",
    "EnvOptions",
    "EnvSpec",
    "Rows",
    "build_stacks",
    "make",
    "probe",
    "seed_for",
    "update_stack",
]

_HOMES = {
    "base": ("BatchedEnv", "EnvError", "EnvSpec", "Rows"),
    "catalogue": ("make", "probe"),
    "options": ("EnvOptions",),
    "seeds": ("seed_for",),
    "stacking": ("build_stacks", "update_stack"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
