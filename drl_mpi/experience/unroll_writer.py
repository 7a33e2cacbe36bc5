"""Writes what environments go through into unroll records, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from drl_mpi.comm.record import Slot
from drl_mpi.envs import Rows, update_stack
from drl_mpi.experience.unroll import UnrollShape


class UnrollWriter:
    """One unroll after the other, of n environments.

    An unroll is ``begin``, then T times ``observe``, ``decide``, ``follow``, then ``finish``. The
    row that it is finished with is the next unroll's row 0.

    Args:
        shape: of the records, whose ``envs`` divides n.
        envs: n.
        gamma: discount of a transition that ends nothing.
        reward_clip: rewards are clipped to [-clip, clip]; 0 leaves them as they are.
    """

    def __init__(self, shape: UnrollShape, envs: int, *, gamma: float, reward_clip: float) -> None:
        spec = shape.spec
        self.records = envs // shape.envs
        """Records that one unroll fills."""
        self.t = 0
        """Row that comes next: transitions of the present unroll so far."""
        self._length = shape.length
        self._width = shape.envs
        self._gamma = np.float32(gamma)
        self._reward_clip = reward_clip
        self._before = spec.stack - 1
        self._stack = np.zeros((envs, spec.stack, *spec.frame_shape), dtype=spec.frame_dtype)
        self.observations = self._stack.reshape(envs, *spec.observation_shape)
        """``[n, *observation_shape]`` of the row that was observed last."""
        # The last rows' frames, oldest first: what the next unroll needs before its row 0.
        self._frames = np.zeros((self._before, envs, *spec.frame_shape), dtype=spec.frame_dtype)
        self._resets = np.ones((self._before, envs), dtype=bool)
        self._parts: list[tuple[dict[str, npt.NDArray[np.generic]], slice]] = []

    @property
    def complete(self) -> bool:
        """Whether the unroll has all its transitions and only wants to be finished."""
        return self.t == self._length

    def restart(self) -> None:
        """The environments restart: what came before is forgotten, an unfinished unroll too."""
        self.t = 0
        self._frames.fill(0)
        self._resets.fill(True)

    def begin(self, slots: Sequence[Slot], state: npt.NDArray[np.float32] | None) -> None:
        """Begins an unroll.

        Args:
            slots: its records, over which the environments are spread.
            state: float32 ``[parts, n, hidden]`` before row 0, or ``None`` without a core.
        """
        width = self._width
        self._parts = [
            (slot.fields, slice(i * width, (i + 1) * width)) for i, slot in enumerate(slots)
        ]
        self.t = 0
        for fields, columns in self._parts:
            fields["frames"][: self._before] = self._frames[:, columns]
            fields["resets"][: self._before] = self._resets[:, columns]
            if state is not None:
                fields["state"][:] = state[:, columns]

    def observe(self, row: Rows) -> None:
        """Row t, in which actions are to be chosen; ``observations`` then show it."""
        self._write_row(row)
        update_stack(self._stack, row.frame, row.reset)

    def decide(self, actions: npt.NDArray[np.int64], log_probs: npt.NDArray[np.float32]) -> None:
        """The actions ``[n]`` that were chosen in row t, and their log-probabilities (mu)."""
        for fields, columns in self._parts:
            fields["actions"][self.t] = actions[columns]
            fields["log_probs"][self.t] = log_probs[columns]

    def follow(self, row: Rows) -> None:
        """The transition into the next row, t + 1."""
        rewards = row.reward
        if self._reward_clip:
            rewards = np.clip(rewards, -self._reward_clip, self._reward_clip)
        discounts = self._gamma * ~row.terminated
        for fields, columns in self._parts:
            fields["rewards"][self.t] = rewards[columns]
            fields["discounts"][self.t] = discounts[columns]
            fields["episode_returns"][self.t] = row.episode_return[columns]
            fields["episode_lengths"][self.t] = row.episode_length[columns]
        self.t += 1

    def finish(self, row: Rows) -> None:
        """The last row, which serves as the bootstrap; it is observed again as the next row 0."""
        self._write_row(row)
        if self._before:
            last = slice(self._length, self._length + self._before)
            for fields, columns in self._parts:
                self._frames[:, columns] = fields["frames"][last]
                self._resets[:, columns] = fields["resets"][last]
        self._parts = []

    def _write_row(self, row: Rows) -> None:
        t = self.t
        for fields, columns in self._parts:
            fields["frames"][self._before + t] = row.frame[columns]
            fields["resets"][self._before + t] = row.reset[columns]
            fields["firsts"][t] = row.first[columns]
