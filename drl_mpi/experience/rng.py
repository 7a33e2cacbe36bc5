"""The state of a NumPy generator as six words, so that it fits into records and checkpoints."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MASK = (1 << 64) - 1


def make_rng(*entropy: int) -> np.random.Generator:
    """A PCG64 generator from non-negative integers, e.g. (seed, rank, epoch)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def pack_rng(rng: np.random.Generator) -> npt.NDArray[np.uint64]:
    """A PCG64 generator's state: uint64 ``[6]``."""
    state = rng.bit_generator.state
    value, increment = state["state"]["state"], state["state"]["inc"]
    return np.array(
        [
            value >> 64,
            value & _MASK,
            increment >> 64,
            increment & _MASK,
            state["has_uint32"],
            state["uinteger"],
        ],
        dtype=np.uint64,
    )


def unpack_rng(rng: np.random.Generator, words: npt.NDArray[np.uint64]) -> None:
    """Sets a PCG64 generator to the state that ``pack_rng`` gave."""
    high, low, high_increment, low_increment, has_uint32, uinteger = (int(w) for w in words)
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": high << 64 | low, "inc": high_increment << 64 | low_increment},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
