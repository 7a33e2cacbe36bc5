"""From an id to environments: Atari ids go to AtariVectorEnv, all others through Gymnasium."""

from __future__ import annotations

import difflib
import importlib

import ale_py
import gymnasium
from gymnasium.envs.registration import EnvSpec as Registered

from drl_mpi.envs.atari import AtariBatch, atari_spec
from drl_mpi.envs.base import BatchedEnv, EnvError, EnvSpec
from drl_mpi.envs.gymnasium_env import GymnasiumBatch, gymnasium_spec
from drl_mpi.envs.options import EnvOptions

ATARI_ENTRY_POINT = "ale_py.env:AtariEnv"
ATARI_VECTOR_ENTRY_POINT = "ale_py.vector_env:AtariVectorEnv"

gymnasium.register_envs(ale_py)


def make(env_id: str, num_envs: int, options: EnvOptions | None = None) -> BatchedEnv:
    """Make `num_envs` environments that step together.

    env_id: "ALE/Pong-v5", "CartPole-v1", or "module:Name-v0", which imports the module first.
    Call `reset(seed)` before the first step. Raises EnvError as `probe` does, and for num_envs < 1.
    """
    if num_envs < 1:
        raise EnvError(f"num_envs is {num_envs}; allowed: 1 or more")
    options = EnvOptions() if options is None else options
    game = _atari_game(env_id, find(env_id))
    if game is not None:
        return AtariBatch(env_id, game, num_envs, options)
    return GymnasiumBatch(env_id, num_envs, options)


def probe(env_id: str, options: EnvOptions | None = None) -> EnvSpec:
    """Describe an environment at the cost of making one, so that a bad id stops a job at its start.

    Raises EnvError, in one line, for an unknown id (with the ids closest to it), an environment
    that cannot be made, actions that are not Discrete, and observations that are neither Box nor
    Discrete.
    """
    options = EnvOptions() if options is None else options
    game = _atari_game(env_id, find(env_id))
    if game is not None:
        return atari_spec(env_id, game, options)
    return gymnasium_spec(env_id, options)


def find(env_id: str) -> Registered:
    """Look an id up in Gymnasium's registry, importing "module" first if it is "module:Name-v0"."""
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a user's module raises
            raise EnvError(
                f"environment {env_id!r}: cannot import {module!r} "
                f"({type(error).__name__}: {error}); allowed: modules on Python's path; check the "
                "name and PYTHONPATH"
            ) from error
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        close = suggestions(name)
        hint = f"did you mean {' or '.join(close)}?" if close else "check the name"
        raise EnvError(
            f"unknown environment {name!r}; allowed: ids in Gymnasium's registry, such as "
            "ALE/Pong-v5 or CartPole-v1, and module:Name-v0 where importing the module registers "
            f"Name-v0; {hint}"
        ) from error


def suggestions(name: str, count: int = 3) -> list[str]:
    """Registered ids that look like a name; "pong" finds ALE/Pong-v5."""

    def bare(text: str) -> str:
        return (
            text.rpartition("/")[2].rpartition("-v")[0].lower() or text.rpartition("/")[2].lower()
        )

    wanted = bare(name)
    by_name: dict[str, list[str]] = {}
    for known, registered in gymnasium.registry.items():
        if registered.entry_point == ATARI_ENTRY_POINT and registered.vector_entry_point is None:
            continue  # ale-py's older ids, which `make` refuses
        by_name.setdefault(bare(known), []).append(known)
    close = difflib.get_close_matches(wanted, by_name, n=count, cutoff=0.6)
    return [max(by_name[match]) for match in close]


def _atari_game(env_id: str, registered: Registered) -> str | None:
    """The ROM's name if the id is an ALE/...-v5 one, None if it is not Atari."""
    if registered.vector_entry_point == ATARI_VECTOR_ENTRY_POINT:
        return str(registered.kwargs["game"])
    if registered.entry_point == ATARI_ENTRY_POINT:
        # Their frame skip and stickiness are part of the id and would contradict EnvOptions.
        close = suggestions(env_id.replace("NoFrameskip", "").replace("Deterministic", ""), 1)
        raise EnvError(
            f"environment {env_id!r} is one of ALE's older ids; allowed: ALE/...-v5; take "
            f"{' or '.join(close) or 'that form'} and set action_repeat and sticky by options"
        )
    return None
