"""Replay of single transitions, for Q-learning: uniform (Mnih et al. 2015) and prioritised.

    replay = UniformReplay(spec, lanes, capacity, n_steps, rng)
    replay.add(lane, unroll)                  # frames are stored once
    if replay.ready(min_rows): replay.sample(batch)

``drl_mpi.experience.rings`` says how rows are stored, and which transitions are made of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from drl_mpi.envs import EnvSpec
from drl_mpi.experience.batch import Fields
from drl_mpi.experience.rings import Integers, Rings, row_fields
from drl_mpi.experience.rings_state import (
    array,
    move,
    read_rings,
    real,
    rings_state,
    rng_words,
)
from drl_mpi.experience.rng import pack_rng, unpack_rng
from drl_mpi.experience.sum_tree import SumTree
from drl_mpi.experience.transitions import TransitionBatch

CANDIDATES = 4
"""Slots drawn per sample wanted; enough unless three in four rows are no starts."""


def row_bytes(spec: EnvSpec) -> int:
    """Bytes of one stored row: 7,067 for Atari's 84 x 84."""
    return sum(field.nbytes for field in row_fields(spec)) + 1


def storage_bytes(spec: EnvSpec, lanes: int, capacity: int, prioritized: bool) -> int:
    """Bytes that a full replay takes, so that a job can refuse before it begins."""
    slots = capacity // lanes * lanes
    return slots * row_bytes(spec) + (SumTree.nbytes(max(slots, 1)) if prioritized else 0)


def check_capacity(spec: EnvSpec, lanes: int, capacity: int, n_steps: int) -> None:
    """Raises ValueError when a lane's rows are too few for a transition; see ``Replay``."""
    if lanes < 1 or n_steps < 1:
        raise ValueError(f"replay of {lanes} lanes and {n_steps} steps: both are at least 1")
    shortest = spec.stack + n_steps + 1
    if capacity // lanes < shortest:
        raise ValueError(
            f"replay capacity {capacity} gives each of {lanes} environments {capacity // lanes} "
            f"rows; stacks of {spec.stack} frames and {n_steps}-step transitions need {shortest}: "
            f"raise it to {lanes * shortest} or more"
        )


class Replay:
    """What both kinds share: the rows, and what they are drawn for.

    Args:
        spec: the environment.
        lanes: environments of all actors together; each has a ring of ``capacity // lanes`` rows.
        capacity: rows, of all lanes together. Memory is taken as they fill.
        n_steps: n of the transitions.
        rng: decides what is sampled.

    Raises:
        ValueError: when a lane's rows are too few for a transition.
    """

    def __init__(
        self, spec: EnvSpec, lanes: int, capacity: int, n_steps: int, rng: np.random.Generator
    ) -> None:
        check_capacity(spec, lanes, capacity, n_steps)
        self._rings = Rings(spec, lanes, capacity // lanes, n_steps)
        self._rng = rng

    @property
    def capacity(self) -> int:
        """Rows that fit: the wished ones, rounded down to a multiple of the lanes."""
        return self._rings.lanes * self._rings.length

    @property
    def size(self) -> int:
        """Rows stored."""
        return int(self._rings.sizes.sum())

    @property
    def sampleable(self) -> int:
        """Stored rows from which a transition can be made."""
        return self._rings.count

    def ready(self, count: int) -> bool:
        """Whether at least ``count`` rows are stored, and something can be sampled."""
        return self.size >= count and self.sampleable > 0

    def add(self, lane: int, fields: Fields) -> None:
        """Stores an unroll of w environments in the lanes ``lane`` .. ``lane + w - 1``.

        Rows 0 .. T-1 are stored and the oldest give way; row T comes again as the next unroll's
        row 0. A lane's unrolls follow each other without a gap, except that an environment may
        have been restarted, so that its unroll begins with a reset.

        Args:
            lane: the first environment's.
            fields: of ``UnrollShape.record``; ``frames``, ``resets``, ``actions``, ``rewards`` and
                ``discounts`` are used. Nothing is kept by reference.

        Raises:
            ValueError: for lanes that do not exist, shapes that disagree, actions out of range,
                rewards that are not finite, discounts outside [0, 1].
        """
        self._rings.add(lane, fields)

    def state(self) -> dict[str, Any]:
        """Rows in use (views, not copies: save them before the next ``add``), and the RNG."""
        return {**rings_state(self._rings), "rng": pack_rng(self._rng)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``.

        With as many lanes and the same capacity, the same samples follow, bit for bit. Otherwise
        the newest rows are kept, as many as fit, in pieces that do not run into each other: see
        ``rings_state.move``.

        Raises:
            ValueError: for a state that is damaged, or of another environment. Nothing has
                changed then.
            OSError: for frames that cannot be read from an open file. Some have been replaced.
        """
        words = rng_words(state)
        move(*read_rings(self._rings.spec, state), self._rings)
        unpack_rng(self._rng, words)

    def _check_batch(self, batch: TransitionBatch) -> None:
        spec = self._rings.spec
        if (batch.stacks.shape[1:], batch.stacks.dtype) != (
            (spec.stack, *spec.frame_shape),
            np.dtype(spec.frame_dtype),
        ):
            raise ValueError(
                f"the batch is for stacks of {batch.stacks.dtype} {batch.stacks.shape[1:]}, the "
                f"replay has {spec.frame_dtype} {(spec.stack, *spec.frame_shape)}; make both from "
                "the same EnvSpec"
            )
        if not self.sampleable:
            raise ValueError(
                f"the replay has {self.size} rows, but no transition can be made of them yet: ask "
                "ready() before sampling"
            )


class UniformReplay(Replay):
    """Transitions are drawn uniformly, with replacement (Mnih et al. 2015). See ``Replay``."""

    def sample(self, batch: TransitionBatch) -> None:
        """Fills the batch; its weights are 1.

        Raises:
            ValueError: when there is nothing to sample, or for a batch of another environment.
        """
        self._check_batch(batch)
        self._rings.read(self._draw(len(batch)), batch)
        batch.weights.fill_(1.0)
        batch.errors = None

    def _draw(self, count: int) -> Integers:
        """Slots of starts, int64 ``[count]``.

        Rows are drawn, and those that are no starts are dropped. If that leaves too few, the
        others come from the list of all starts, which is as uniform, but takes a walk over it.
        """
        rings = self._rings
        ends = np.cumsum(rings.sizes)
        drawn = self._rng.integers(ends[-1], size=CANDIDATES * count)
        lanes = np.searchsorted(ends, drawn, side="right")
        slots = rings.slots(lanes, rings.added[lanes] - (ends[lanes] - drawn))
        slots = slots[rings.starts[slots]][:count]
        if len(slots) == count:
            return slots
        starts = np.flatnonzero(rings.starts[: rings.used])
        rest = starts[self._rng.integers(len(starts), size=count - len(slots))]
        return np.concatenate([slots, rest])


class PrioritizedReplay(Replay):
    """Transitions are drawn in proportion to their priorities (Schaul et al. 2016, section 3.3).

    A transition that was not trained on yet has the largest priority that there ever was (1 at
    first); afterwards (abs(TD error) + eps) ** alpha.

    Args:
        spec, lanes, capacity, n_steps, rng: see ``Replay``.
        alpha: 0 draws uniformly, 1 in full proportion; the paper has 0.6.
        eps: keeps a transition without an error from never being drawn again; > 0.

    Raises:
        ValueError: as ``Replay``; for alpha outside [0, 1] and eps that is not above 0.
    """

    def __init__(
        self,
        spec: EnvSpec,
        lanes: int,
        capacity: int,
        n_steps: int,
        rng: np.random.Generator,
        alpha: float,
        eps: float,
    ) -> None:
        super().__init__(spec, lanes, capacity, n_steps, rng)
        if not 0 <= alpha <= 1 or not 0 < eps < math.inf:
            raise ValueError(
                f"alpha {alpha} and eps {eps} do not make priorities; allowed: alpha 0 to 1 (the "
                "paper has 0.6), eps above 0 (such as 1e-6)"
            )
        self._alpha, self._eps = alpha, eps
        self._tree = SumTree(self.capacity)
        self._largest = 1.0

    def add(self, lane: int, fields: Fields) -> None:
        """See ``Replay.add``."""
        change = self._rings.add(lane, fields)
        self._tree.set(change.closed, 0.0)
        self._tree.set(change.opened, self._largest)

    def sample(self, batch: TransitionBatch, beta: float) -> None:
        """Fills the batch, one transition from each of B equal parts of all priorities' sum.

        Weights are (N P) ** -beta, divided by the batch's largest (appendix B.2.1).

        Args:
            batch: to fill.
            beta: 0 corrects nothing, 1 fully; the paper goes from 0.4 to 1 within a run.

        Raises:
            ValueError: when there is nothing to sample, for a batch of another environment, and
                for beta outside [0, 1].
        """
        if not 0 <= beta <= 1:
            raise ValueError(f"beta is {beta}; allowed: 0 (no correction) to 1 (full correction)")
        self._check_batch(batch)
        total = self._tree.total
        strata = (np.arange(len(batch)) + self._rng.random(len(batch))) / len(batch)
        slots = self._tree.find(np.minimum(strata * total, np.nextafter(total, 0)))
        self._rings.read(slots, batch)
        priorities = self._tree.get(slots)
        # N and the sum cancel out when divided by the largest weight, which the least likely has.
        batch.weights.numpy()[:] = (priorities.min() / priorities) ** beta
        batch.errors = None

    def update(
        self, indices: Integers, generations: Integers, errors: npt.NDArray[np.floating[Any]]
    ) -> None:
        """Sets the priorities of transitions that were trained on.

        Those that were overwritten since they were sampled, or are about to be, are left out. Of
        one that stands there several times, the last error counts.

        Args:
            indices, generations: of the batch, int64 ``[B]``.
            errors: TD errors, float ``[B]``, on the host; their sign does not matter.

        Raises:
            ValueError: for errors that are not finite, or shapes that disagree.
            IndexError: for indices outside the replay.
        """
        sizes = np.abs(np.asarray(errors, dtype=np.float64))
        if not sizes.shape == indices.shape == generations.shape or sizes.ndim != 1:
            raise ValueError(
                f"indices {indices.shape}, generations {generations.shape} and errors "
                f"{sizes.shape} disagree; give the batch's own [B]"
            )
        if not np.isfinite(sizes).all():
            raise ValueError(
                f"a TD error is {sizes[~np.isfinite(sizes)][0]}; the loss has diverged: lower the "
                "learning rate or clip the gradient"
            )
        if indices.size and not 0 <= indices.min() <= indices.max() < self.capacity:
            raise IndexError(
                f"indices are {indices.min()} to {indices.max()}; the replay's slots are 0 to "
                f"{self.capacity - 1}"
            )
        same = self._rings.starts[indices] & (self._rings.rows_at(indices)[1] == generations)
        priorities = (sizes[same] + self._eps) ** self._alpha
        self._tree.set(indices[same], priorities)
        self._largest = max([self._largest, *priorities])

    def state(self) -> dict[str, Any]:
        """See ``Replay.state``; and the priorities, 0 for rows from which nothing starts."""
        priorities = self._tree.values[: self._rings.used]
        return {**super().state(), "priorities": priorities, "largest": self._largest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See ``Replay.restore``. Rows that become starts get the largest priority."""
        words = rng_words(state)
        source, frames = read_rings(self._rings.spec, state)
        source.recount()
        largest = real(state, "largest", 1.0, self._tree.limit)
        old = array(state, "priorities", "float64", (source.used,))
        sane = not old.size or 0 <= old.min() <= old.max() <= largest
        if not sane or ((old > 0) != source.starts).any():
            raise ValueError(
                "the checkpoint's replay has priorities that are not finite, or do not belong to "
                "its rows: it is damaged; use another checkpoint"
            )
        to, from_ = move(source, frames, self._rings)
        new = np.where(old[from_] > 0, old[from_], largest)
        self._tree = SumTree(self.capacity)
        self._tree.set(to, np.where(self._rings.starts[to], new, 0))
        self._largest = largest
        unpack_rng(self._rng, words)
