"""Seeds that no two actors share."""

from __future__ import annotations

from drl_mpi.envs.base import MAX_SEED

MAX_ACTORS = 4096
"""As many ranks as drl_mpi.run.layout plans for."""
MAX_ENVS_PER_ACTOR = 32_768
"""Leaves 16 epochs of 4,096 actors inside the 2**31 seeds that ALE accepts."""
_WORD = 2**64 - 1


def seed_for(seed: int, actor: int, envs_per_actor: int, epoch: int = 0) -> int:
    """First of the `envs_per_actor` consecutive environment seeds that belong to one actor.

    For one run seed, the ranges [s, s + envs_per_actor) of two actors never overlap, and neither do
    those of two epochs (an epoch is one restart of the environments at a checkpoint boundary). The
    2**31 seeds hold 2**31 / (4096 * w) epochs, w being envs_per_actor rounded up to a power of two:
    16,384 with 32 environments. Later epochs start again with the seeds of epoch 0, other actors
    still excluded. The run seed is scrambled, so that two runs hardly ever share a range.

    seed: run seed, any integer >= 0. actor: 0 .. 4095. envs_per_actor: 1 .. 32768. epoch: >= 0.
    Returns a seed for `BatchedEnv.reset`. Pure: depends on nothing else.
    Raises ValueError for arguments outside these ranges.
    """
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed {seed} and epoch {epoch} must not be negative")
    if not 0 <= actor < MAX_ACTORS:
        raise ValueError(f"actor is {actor}; allowed: 0 .. {MAX_ACTORS - 1}")
    if not 1 <= envs_per_actor <= MAX_ENVS_PER_ACTOR:
        raise ValueError(
            f"envs_per_actor is {envs_per_actor}; allowed: 1 .. {MAX_ENVS_PER_ACTOR}; "
            "use more actors"
        )
    width = 1 << (envs_per_actor - 1).bit_length()
    blocks = (MAX_SEED + 1) // width
    return (_mix(seed) + epoch * MAX_ACTORS + actor) % blocks * width


def _mix(value: int) -> int:
    """Scramble an integer to 64 bits (the finaliser of SplitMix64: Steele, Lea and Flood 2014)."""
    mixed = 0
    while True:  # fold integers of any size, 64 bits at a time
        mixed = (mixed ^ (value & _WORD)) + 0x9E3779B97F4A7C15 & _WORD
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _WORD
        mixed ^= mixed >> 31
        value >>= 64
        if not value:
            return mixed
