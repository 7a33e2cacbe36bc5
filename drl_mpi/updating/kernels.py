"""Steps of a shard's optimisers in C (kernels.c), where a compiler built them at installation.

They are an option: without them NumPy makes the same bits in three to four times the time.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

VERSION = 1
"""Of the signatures in kernels.c: an editable installation may hold a library of yesterday."""

Vector = npt.NDArray[np.float32]


def implementation() -> str:
    """ "C" or "NumPy": what makes the steps in this process."""
    return "NumPy" if LIBRARY is None else "C"


def step(
    name: str,
    source: Vector,
    target: Vector,
    gradient: Vector,
    scalars: Vector,
    slots: Iterable[Vector],
) -> bool | None:
    """One step of the function `name` of kernels.c; other Python threads run meanwhile.

    `source`, `target`, `gradient` and each slot are [size] float32, `scalars` and the order of
    `slots` as the function says. Returns whether all new parameters are finite, or None, and does
    nothing, where NumPy must do it: no library, or vectors that C cannot walk through.
    """
    read = source.flags.c_contiguous and source.flags.aligned
    read &= gradient.flags.c_contiguous and gradient.flags.aligned
    if LIBRARY is None or not (read and target.flags.carray):
        return None
    addresses = [slot.ctypes.data for slot in slots]
    finite: int = getattr(LIBRARY, name)(
        ctypes.c_ssize_t(source.size),
        ctypes.c_void_p(source.ctypes.data),
        ctypes.c_void_p(target.ctypes.data),
        ctypes.c_void_p(gradient.ctypes.data),
        ctypes.c_void_p(scalars.ctypes.data),
        (ctypes.c_void_p * len(addresses))(*addresses),
    )
    return bool(finite)


def _load() -> ctypes.CDLL | None:
    # Built like an extension module, so it is found like one, but it cannot be imported.
    spec = importlib.util.find_spec("drl_mpi.updating._kernels")
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        fits = library.drl_mpi_kernels_version() == VERSION
    except (OSError, AttributeError):  # for another libc, or something else altogether
        return None
    return library if fits else None


LIBRARY = _load()
"""None: NumPy makes the steps."""
