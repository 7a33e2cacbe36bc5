"""Rows of single steps, the newest of each lane, and which of them begin a complete transition.

A *lane* is one environment of one actor. Each lane has a ring of the same length; the rings are
interleaved (slot = position in the ring x lanes + lane), so that rings which fill evenly fill the
memory from its front, and what is in use is one contiguous piece.

Row t of a lane holds the newest frame of x_t, the action chosen there, and reward and discount of
the transition to x_{t+1}. Every frame is stored once: stacks are rebuilt when they are read.

A row is a *start* if a transition of n steps can be made from it:

- its stack is complete: all frames of it since the reset are still stored;
- the transition to row t+1 happened: row t+1 is there, and is not the first of another game;
- the window t .. t+n is stored, or ends sooner, after m < n steps: with a termination (discount
  0), or because row t+m is the last of its game, without one (time limit, restart of the
  environment), or the last before a gap. Then it bootstraps from x_{t+m} after m discounts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from drl_mpi.comm.record import Field
from drl_mpi.envs import EnvSpec
from drl_mpi.experience.batch import Fields
from drl_mpi.experience.transitions import TransitionBatch

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

GOES_ON, RESET, GAP = 0, 1, 2
"""How a row follows the one before it in its lane: the game goes on; a new game, stacks begin with
zeros; the rows before are not known, and a stack that would need them cannot be made."""


def row_fields(spec: EnvSpec) -> tuple[Field, ...]:
    """What a stored row consists of, beside one byte that says whether it is a start."""
    action = next(
        dtype
        for dtype, limit in (("uint8", 2**8), ("uint16", 2**16), ("int32", 2**31))
        if spec.num_actions <= limit
    )
    return (
        Field("frames", spec.frame_dtype, spec.frame_shape),
        Field("actions", action),
        Field("rewards", "float32"),
        Field("discounts", "float32"),
        Field("begins", "uint8"),
    )


class Change(NamedTuple):
    """What an added unroll did to the starts: slots, int64 each."""

    opened: Integers
    """Hold a row that has become a start."""
    closed: Integers
    """Held a start, and hold none now."""


class Windows(NamedTuple):
    """Transitions of up to n steps, ``[B]`` each."""

    known: Flags
    """All rows that decide about it are stored."""
    steps: Integers
    """m, 0 .. n; 0 if the first transition never happened."""
    rewards: npt.NDArray[np.float32]
    discounts: npt.NDArray[np.float32]


class Rings:
    """All lanes' rings.

    Args:
        spec: the environment.
        lanes: environments of all actors together.
        length: rows of each ring.
        n_steps: n of the transitions.
        rows: the arrays to work on, ``row_fields`` each with the slots in front, which may be
            fewer than there could be; fresh ones, which the operating system hands out page by
            page when they are first written, if not given.

    Attributes:
        rows: field name -> array ``[slots, ...]``; without frames where a state is looked at.
        added: int64 ``[lanes]``, rows ever added; row number r lies at position r % length.
        broken: bool ``[lanes]``, the next row to come does not follow the newest one here.
        starts: bool ``[slots]``.
        count: number of starts.
    """

    def __init__(
        self,
        spec: EnvSpec,
        lanes: int,
        length: int,
        n_steps: int,
        rows: dict[str, npt.NDArray[Any]] | None = None,
    ) -> None:
        self.spec, self.lanes, self.length, self.n_steps = spec, lanes, length, n_steps
        slots = lanes * length if rows is None else len(rows["begins"])
        self.rows = rows or {
            field.name: np.zeros((slots, *field.shape), field.dtype) for field in row_fields(spec)
        }
        self.added: Integers = np.zeros(lanes, dtype=np.int64)
        self.broken: Flags = np.ones(lanes, dtype=np.bool_)
        self.starts: Flags = np.zeros(slots, dtype=np.bool_)
        self.count = 0

    @property
    def sizes(self) -> Integers:
        """Rows stored in each lane, int64 ``[lanes]``."""
        return np.minimum(self.added, self.length)

    @property
    def used(self) -> int:
        """Slots, from the first on, among which all stored rows are."""
        return int(self.sizes.max()) * self.lanes

    def slots(self, lanes: Integers, numbers: Integers) -> Integers:
        """Where rows lie, given their lanes and their numbers in them."""
        return numbers % self.length * self.lanes + lanes

    def rows_at(self, slots: Integers) -> tuple[Integers, Integers]:
        """Lanes and numbers of the rows in these slots; a negative number where none is."""
        lanes = slots % self.lanes
        newest = self.added[lanes] - 1
        return lanes, newest - (newest - slots // self.lanes) % self.length

    def add(self, lane: int, fields: Fields) -> Change:
        """Stores rows 0 .. T-1 of an unroll in the lanes from ``lane`` on. See ``Replay.add``."""
        self._check(lane, fields)
        t_max, width = fields["actions"].shape
        rows = slice(self.spec.stack - 1, self.spec.stack - 1 + t_max)
        lanes = np.arange(lane, lane + width)
        begins = fields["resets"][rows].astype(np.uint8)  # True is RESET
        begins[0, self.broken[lanes] & (begins[0] == GOES_ON)] = GAP
        # Of an unroll that is longer than the ring, only the end stays.
        first = max(0, t_max - self.length)
        before = self.added[lanes]
        slots = self.slots(lanes, before + np.arange(first, t_max)[:, None])
        for name in ("actions", "rewards", "discounts"):
            self.rows[name][slots] = fields[name][first:]
        self.rows["frames"][slots] = fields["frames"][rows][first:]
        self.rows["begins"][slots] = begins[first:]
        self.added[lanes] += t_max
        self.broken[lanes] = False
        return self._judge(lanes, before, t_max)

    def windows(self, lanes: Integers, numbers: Integers) -> Windows:
        """The transitions from stored rows, int64 ``[B]`` each."""
        newest = self.added[lanes] - 1
        known = np.ones(numbers.shape, dtype=np.bool_)
        open_ = known.copy()
        steps = np.zeros(numbers.shape, dtype=np.int64)
        rewards = np.zeros(numbers.shape, dtype=np.float32)
        discounts = np.ones(numbers.shape, dtype=np.float32)
        here = self.slots(lanes, numbers)
        for step in range(1, self.n_steps + 1):
            there = self.slots(lanes, np.minimum(numbers + step, newest))
            known &= ~open_ | (numbers + step <= newest)
            open_ = open_ & known & (self.rows["begins"][there] == GOES_ON)
            rewards += np.where(open_, discounts * self.rows["rewards"][here], 0)
            discounts = np.where(open_, discounts * self.rows["discounts"][here], discounts)
            steps += open_
            open_ = open_ & (discounts != 0)
            here = there
        return Windows(known, steps, rewards, discounts)

    def read(self, slots: Integers, batch: TransitionBatch) -> None:
        """Fills a batch, all but its weights, from starts: int64 ``[B]``."""
        lanes, numbers = self.rows_at(slots)
        windows = self.windows(lanes, numbers)
        self._stack(lanes, numbers, batch.stacks)
        self._stack(lanes, numbers + windows.steps, batch.next_stacks)
        batch.actions.numpy()[:] = self.rows["actions"][slots]
        batch.rewards.numpy()[:] = windows.rewards
        batch.discounts.numpy()[:] = windows.discounts
        batch.indices[:] = slots
        batch.generations[:] = numbers
        batch.ages[:] = self.added[lanes] - 1 - numbers

    def recount(self) -> None:
        """Finds all starts anew, from the rows alone."""
        self.starts.fill(False)
        for block in blocks(self.used):
            slots = np.arange(block.start, block.stop)
            slots = slots[self.rows_at(slots)[1] >= 0]
            self.starts[slots] = self._is_start(*self.rows_at(slots))
        self.count = int(np.count_nonzero(self.starts))

    def _judge(self, lanes: Integers, before: Integers, t_max: int) -> Change:
        """Looks again at the rows whose being a start may have changed, after T rows were added.

        These are the new ones, those whose windows reached past the newest row, and the oldest,
        whose stacks have just lost frames.
        """
        ahead = before - self.n_steps + np.arange(self.n_steps + t_max)[:, None]
        oldest = np.maximum(before + t_max - self.length, 0)
        behind = oldest + np.arange(self.spec.stack - 1)[:, None]
        stored = np.concatenate([ahead >= oldest, behind < ahead[0]])
        numbers = np.concatenate([ahead, behind])[stored]
        owners = np.broadcast_to(lanes, stored.shape)[stored]
        old = numbers < np.broadcast_to(before, stored.shape)[stored]
        slots = self.slots(owners, numbers)
        was, now = self.starts[slots], self._is_start(owners, numbers)
        self.starts[slots] = now
        self.count += int(np.count_nonzero(now)) - int(np.count_nonzero(was))
        return Change(opened=slots[now & ~(was & old)], closed=slots[was & ~now])

    def _is_start(self, lanes: Integers, numbers: Integers) -> Flags:
        """Whether stored rows are starts: see the top of this file."""
        oldest = self.added[lanes] - self.sizes[lanes]
        complete = np.ones(numbers.shape, dtype=np.bool_)
        needs = complete.copy()  # the frame before this one
        for back in range(self.spec.stack - 1):
            number = numbers - back
            begins = self.rows["begins"][self.slots(lanes, np.maximum(number, oldest))]
            needs = needs & (begins != RESET)
            complete &= ~needs | ((begins != GAP) & (number > oldest))
        windows = self.windows(lanes, numbers)
        return complete & windows.known & (windows.steps > 0)

    def _stack(self, lanes: Integers, numbers: Integers, out: npt.NDArray[Any]) -> None:
        """Rebuilds stacks ``[B, stack, *frame_shape]``, as ``envs.build_stacks`` does."""
        newest = self.spec.stack - 1
        slots = self.slots(lanes[:, None], numbers[:, None] + np.arange(-newest, 1))
        # "clip" spares a buffer; all slots are in range.
        np.take(self.rows["frames"], slots, axis=0, out=out, mode="clip")
        resets = self.rows["begins"][slots[:, 1:]] == RESET
        # A slot is blank if a game began after it.
        blank = np.logical_or.accumulate(resets[:, ::-1], axis=1)[:, ::-1]
        out[:, :newest][blank] = 0

    def _check(self, lane: int, fields: Fields) -> None:
        """ValueError for an unroll that does not belong here."""
        t_max, width = fields["actions"].shape
        rows = self.spec.stack + t_max
        shapes = {
            "frames": (rows, width, *self.spec.frame_shape),
            "resets": (rows, width),
            "rewards": (t_max, width),
            "discounts": (t_max, width),
        }
        for name, shape in shapes.items():
            if fields[name].shape != shape:
                raise ValueError(
                    f"the unroll's {name} have shape {fields[name].shape}; with actions of "
                    f"{(t_max, width)} and stacks of {self.spec.stack} they must have {shape}"
                )
        if t_max < 1 or width < 1 or not 0 <= lane <= self.lanes - width:
            raise ValueError(
                f"an unroll of {t_max} transitions of {width} environments cannot go to lane "
                f"{lane} and up; the replay has lanes 0 to {self.lanes - 1}"
            )
        check_values(fields, self.spec.num_actions, "the unroll")


def check_values(fields: Fields, num_actions: int, whose: str) -> None:
    """ValueError for actions, rewards or discounts that no actor makes."""
    for name, low, high in (
        ("actions", 0, num_actions - 1),
        ("rewards", -float(np.finfo(np.float32).max), float(np.finfo(np.float32).max)),
        ("discounts", 0, 1),
    ):
        values = fields[name]
        if not values.size:
            continue
        lowest, highest = values.min(), values.max()  # NaN if one is NaN
        if not (low <= lowest and highest <= high):
            wrong = lowest if not low <= lowest else highest
            raise ValueError(
                f"{whose} has {name} of {wrong}; allowed: {low:.6g} to {high:.6g}; look for a "
                "fault in the environment or a damaged checkpoint"
            )


def blocks(count: int, size: int = 65_536) -> list[slice]:
    """Pieces of ``range(count)``, so that temporary arrays stay small."""
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]
