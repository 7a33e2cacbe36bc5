"""Rings in a checkpoint: what is saved, how an untrusted state is checked, how it moves in.

Nothing is changed before all of a state has been checked, but frames that are still in the file:
what is wrong there is found while they are read.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from drl_mpi.envs import EnvSpec
from drl_mpi.experience.rings import (
    GAP,
    GOES_ON,
    Integers,
    Rings,
    check_values,
    row_fields,
)
from drl_mpi.experience.stored import StoredRows, pieces

State = Mapping[str, Any]

MAX_COUNT = 2**62
"""Rows that a lane may have seen: far from the end of int64."""


def rings_state(rings: Rings) -> dict[str, Any]:
    """What ``rings`` hold. Rows are views of the slots in use, not copies: save them at once.

    Where lanes have filled unevenly, slots that are not yet used are among them.
    """
    rows = {name: values[: rings.used] for name, values in rings.rows.items()}
    return {
        "rows": rows,
        "added": rings.added.copy(),
        "broken": rings.broken.copy(),
        "length": rings.length,
        "n_steps": rings.n_steps,
    }


def read_rings(spec: EnvSpec, state: State) -> tuple[Rings, StoredRows]:
    """A state's rings, over the state's own arrays; their starts are not counted yet.

    Returns:
        The rings without their frames, and the frames, which may not be in memory.

    Raises:
        ValueError: for a state that ``rings_state`` cannot have made for this environment.
    """
    added = array(state, "added", "int64", (None,))
    lanes = len(added)
    broken = array(state, "broken", "bool", (lanes,))
    if not lanes or added.min() < 0 or added.max() > MAX_COUNT:
        raise ValueError(
            "the checkpoint's replay has lanes with impossible numbers of rows: it is damaged; "
            "use another checkpoint"
        )
    length = integer(state, "length", 1, MAX_COUNT)
    n_steps = integer(state, "n_steps", 1, length)
    used = min(int(added.max()), length) * lanes
    stored = state.get("rows")
    if not isinstance(stored, Mapping):
        raise ValueError("the checkpoint's replay has no rows: it is damaged, or of another kind")
    fields = {field.name: field for field in row_fields(spec)}
    frame = fields.pop("frames")
    frames = _checked(stored, frame.name, frame.dtype, (used, *frame.shape))
    rows = {
        field.name: array(stored, field.name, field.dtype, (used, *field.shape))
        for field in fields.values()
    }
    check_values(rows, spec.num_actions, "the checkpoint's replay")
    if used and rows["begins"].max() > GAP:
        raise ValueError(
            f"the checkpoint's replay has rows that begin with {rows['begins'].max()}; allowed: "
            f"{GOES_ON} to {GAP}; it is damaged: use another checkpoint"
        )
    rings = Rings(spec, lanes, length, n_steps, rows)
    rings.added, rings.broken = added, broken
    return rings, frames


def move(source: Rings, frames: StoredRows, target: Rings) -> tuple[Integers, Integers]:
    """Replaces the target's rows by the source's.

    Into as many lanes of the same length every row goes where it was. Otherwise the newest rows
    of every lane are kept, equally many of each as far as it has them, up to the target's
    capacity (to within one row per lane), and dealt out evenly, lane by lane in order of age. Each
    piece is closed: it begins with a gap unless it begins with a reset, and what is added after it
    does so as well. A piece's edges cost the starts whose stacks lie across, no others: windows
    end at the edge.

    Returns:
        Slots in the target and in the source, int64 each, of the rows that were moved.
    """
    stored: dict[str, StoredRows] = {**source.rows, "frames": frames}
    if (source.lanes, source.length) == (target.lanes, target.length):
        slots = np.arange(source.used)
        for name, rows in stored.items():
            for piece, values in pieces(rows):
                target.rows[name][piece] = values
        target.added, target.broken = source.added.copy(), source.broken.copy()
        target.recount()
        return slots, slots
    lanes, numbers = _newest(source, target.lanes * target.length)
    old = source.slots(lanes, numbers)
    target.added = np.array([len(part) for part in np.array_split(old, target.lanes)])
    target.broken = np.ones(target.lanes, dtype=np.bool_)
    homes = np.repeat(np.arange(target.lanes), target.added)
    ends = np.cumsum(target.added)
    new = target.slots(homes, np.arange(len(old)) - (ends - target.added)[homes])
    in_order = np.argsort(old)
    for name, rows in stored.items():
        for piece, values in pieces(rows):
            low, high = np.searchsorted(old, (piece.start, piece.stop), sorter=in_order)
            here = in_order[low:high]
            target.rows[name][new[here]] = values[old[here] - piece.start]
    edges = np.ones(len(old), dtype=np.bool_)
    edges[1:] = (np.diff(homes) != 0) | (np.diff(lanes) != 0)
    begins = target.rows["begins"]
    begins[new[edges & (begins[new] == GOES_ON)]] = GAP
    target.recount()
    return new, old


def _newest(rings: Rings, capacity: int) -> tuple[Integers, Integers]:
    """Lanes and numbers of the rows to keep, lane by lane, oldest first."""
    sizes = rings.sizes
    level = bisect.bisect_right(
        range(int(sizes.max()) + 1), capacity, key=lambda rows: int(np.minimum(sizes, rows).sum())
    )
    keep = np.minimum(sizes, level - 1)
    lanes = np.repeat(np.arange(rings.lanes), keep)
    within = np.arange(len(lanes)) - (np.cumsum(keep) - keep)[lanes]
    return lanes, (rings.added - keep)[lanes] + within


def array(state: State, name: str, dtype: str, shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    """An array of a state, or ValueError. ``None`` in the shape stands for any size."""
    return _checked(state, name, dtype, shape)[:]


def _checked(state: State, name: str, dtype: str, shape: tuple[int | None, ...]) -> StoredRows:
    value = state.get(name)
    if not isinstance(value, StoredRows) or isinstance(value, np.generic):
        raise ValueError(
            f"the checkpoint's replay has no array {name}: it is damaged, or of another kind"
        )
    fits = len(value.shape) == len(shape) and all(
        n in (None, m) for n, m in zip(shape, value.shape)
    )
    if value.dtype != np.dtype(dtype) or not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(
            f"the checkpoint's replay has {name} of {value.dtype} {value.shape}, this run's replay "
            f"{dtype} ({wanted}); resume with the checkpoint's environment and options"
        )
    return value


def integer(state: State, name: str, low: int, high: int) -> int:
    """A whole number of a state, or ValueError."""
    value = state.get(name)
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ValueError(
            f"the checkpoint's replay has no number {name}: it is damaged, or of another kind"
        )
    if not low <= value <= high:
        raise ValueError(
            f"the checkpoint's replay has {name} of {value}; allowed: {low} to {high}; it is "
            "damaged: use another checkpoint"
        )
    return int(value)


def real(state: State, name: str, low: float, high: float) -> float:
    """A finite number of a state, or ValueError."""
    value = state.get(name)
    if not isinstance(value, int | float | np.floating | np.integer) or not low <= value <= high:
        raise ValueError(
            f"the checkpoint's replay has {name} of {value!r}; allowed: {low:g} to {high:g}; it is "
            "damaged, or of another kind"
        )
    return float(value)


def rng_words(state: State) -> npt.NDArray[np.uint64]:
    """The words of a PCG64 generator that a state holds under ``rng``, or ValueError."""
    words = array(state, "rng", "uint64", (6,)).astype(np.uint64)
    # A PCG64's increment is odd; what is left of a drawn word has 32 bits.
    if not words[3] % 2 or words[4] > 1 or words[5] >= 2**32:
        raise ValueError(
            "the checkpoint's replay has an impossible state of its random numbers: it is "
            "damaged; use another checkpoint"
        )
    return words
