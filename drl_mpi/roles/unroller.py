"""Makes unrolls: environments, and a way of choosing actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drl_mpi.acting.local import Acting
from drl_mpi.comm.record import Slot
from drl_mpi.envs import BatchedEnv, Rows, update_stack
from drl_mpi.experience.unroll import UnrollShape


@dataclass(frozen=True, slots=True)
class Pace:
    """Lock-step: which version acts in which unroll, and when the environments restart.

    Args:
        updates: versions between two unrolls of an actor.
        unrolls: unrolls between two checkpoints, at which all environments restart.
        start: version at which this process begins.
        warm_up: unrolls of this process before the first update.
        by_number: whether the version is asked for by its number. Parameter servers fix it by
            the order in which they serve.
    """

    updates: int
    unrolls: int
    start: int = 0
    warm_up: int = 0
    by_number: bool = True

    def version(self, unroll: int) -> int:
        """Version that acts in this process's unroll number ``unroll``."""
        return self.start + max(0, unroll - self.warm_up) * self.updates

    def epoch(self, unroll: int) -> int | None:
        """Number of the restart that is due before this unroll, or ``None``."""
        epoch, into = divmod(self.version(unroll), self.unrolls * self.updates)
        if unroll == 0:
            return epoch
        return epoch if into == 0 and unroll > self.warm_up else None


class Unroller:
    """Fills records with what n environments go through.

    Args:
        env: n environments.
        acting: chooses their actions.
        shape: of the records, whose ``envs`` divides n.
        gamma: discount of a transition that ends nothing.
        reward_clip: rewards are clipped to [-clip, clip]; 0 leaves them as they are.
        restart: restart number -> seed of the environments; may seed ``acting`` anew.
        epoch: number of the restart that this process begins with.
        pace: lock-step, or ``None`` to run freely.
        progress: called after every step of the environments.
    """

    def __init__(
        self,
        env: BatchedEnv,
        acting: Acting,
        shape: UnrollShape,
        *,
        gamma: float,
        reward_clip: float,
        restart: Callable[[int], int],
        epoch: int = 0,
        pace: Pace | None = None,
        progress: Callable[[], object] = lambda: None,
    ) -> None:
        self.env = env
        self.acting = acting
        self.records = env.num_envs // shape.envs
        """Records that one unroll fills."""
        self._shape = shape
        self._gamma = np.float32(gamma)
        self._reward_clip = reward_clip
        self._restart = restart
        self._epoch = epoch
        self._pace = pace
        self._progress = progress
        self._unroll = 0
        spec, n = env.spec, env.num_envs
        self._stack = np.zeros((n, spec.stack, *spec.frame_shape), dtype=spec.frame_dtype)
        self._observations = self._stack.reshape(n, *spec.observation_shape)
        # The last rows' frames, oldest first: what the next unroll needs before its row 0.
        self._frames = np.zeros((spec.stack - 1, n, *spec.frame_shape), dtype=spec.frame_dtype)
        self._resets = np.ones((spec.stack - 1, n), dtype=bool)
        self._state: npt.NDArray[np.float32] | None = None
        self._row: Rows | None = None

    def begin(self) -> None:
        """Restarts the environments if that is due. Call it before ``refresh``."""
        if self._pace is not None:
            epoch = self._pace.epoch(self._unroll)
        else:
            epoch = self._epoch if self._row is None else None
        if epoch is not None:
            self._reset(epoch)

    def refresh(self) -> bool:
        """Takes up new parameters. ``False`` when no more unrolls are wanted."""
        pace = self._pace
        numbered = pace is not None and pace.by_number
        return self.acting.refresh(pace.version(self._unroll) if pace and numbered else None)

    def fill(self, slots: Sequence[Slot]) -> None:
        """One unroll, whose environments are spread over ``slots``."""
        assert self._row is not None, "call begin() first"
        t_max, before, row = self._shape.length, self.env.spec.stack - 1, self._row
        scatter = _Scatter(slots, self._shape.envs)
        scatter.rows("frames", slice(0, before), self._frames)
        scatter.rows("resets", slice(0, before), self._resets)
        if self._state is not None:
            scatter.rows("state", slice(None), self._state)
        for slot in slots:
            slot["version"][...] = self.acting.version
        for t in range(t_max):
            self._observe(scatter, t, row)
            actions, choice = self.acting.act(self._observations, row.first, self._state)
            scatter.row("actions", t, actions)
            scatter.row("log_probs", t, choice.log_probs)
            self._state = choice.state
            row = self.env.step(actions)
            self._progress()
            rewards = row.reward
            if self._reward_clip:
                rewards = np.clip(rewards, -self._reward_clip, self._reward_clip)
            scatter.row("rewards", t, rewards)
            scatter.row("discounts", t, self._gamma * ~row.terminated)
            scatter.row("episode_returns", t, row.episode_return)
            scatter.row("episode_lengths", t, row.episode_length)
        self._observe(scatter, t_max, row, bootstrap=True)
        if before:
            scatter.gather("frames", slice(t_max, t_max + before), self._frames)
            scatter.gather("resets", slice(t_max, t_max + before), self._resets)
        self._row = row
        self._unroll += 1

    def _reset(self, epoch: int) -> None:
        self._row = self.env.reset(self._restart(epoch))
        self._frames.fill(0)
        self._resets.fill(True)
        parts = self._shape.state_shape
        if parts:
            self._state = np.zeros((parts[0], self.env.num_envs, *parts[1:]), dtype=np.float32)

    def _observe(self, scatter: _Scatter, t: int, row: Rows, bootstrap: bool = False) -> None:
        before = self.env.spec.stack - 1
        scatter.row("frames", before + t, row.frame)
        scatter.row("resets", before + t, row.reset)
        scatter.row("firsts", t, row.first)
        if not bootstrap:  # this row comes again as the next unroll's row 0
            update_stack(self._stack, row.frame, row.reset)


class _Scatter:
    """Writes rows of all n environments into records of ``width`` environments each."""

    def __init__(self, slots: Sequence[Slot], width: int) -> None:
        self._parts = [
            (slot.fields, slice(i * width, (i + 1) * width)) for i, slot in enumerate(slots)
        ]

    def row(self, name: str, t: int, values: npt.NDArray[np.generic]) -> None:
        """``values`` is ``[n, ...]``: row ``t`` of a field."""
        for fields, columns in self._parts:
            fields[name][t] = values[columns]

    def rows(self, name: str, rows: slice, values: npt.NDArray[np.generic]) -> None:
        """``values`` is ``[rows, n, ...]``."""
        for fields, columns in self._parts:
            fields[name][rows] = values[:, columns]

    def gather(self, name: str, rows: slice, out: npt.NDArray[np.generic]) -> None:
        """The reverse of ``rows``."""
        for fields, columns in self._parts:
            out[:, columns] = fields[name][rows]
