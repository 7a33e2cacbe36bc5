"""The actor: environments, a way of choosing actions, and a stream for its unrolls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drl_mpi.acting import Acting
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.record import Slot
from drl_mpi.comm.stream import StreamSender
from drl_mpi.envs import BatchedEnv, Rows, update_stack
from drl_mpi.experience.rng import pack_rng
from drl_mpi.experience.unroll import UnrollShape


@dataclass(frozen=True, slots=True)
class Pace:
    """Lock-step: which version acts in which unroll, and when the environments restart.

    Args:
        updates: versions between two unrolls of an actor.
        unrolls: unrolls between two checkpoints, at which all environments restart.
        start: version at which this process begins.
    """

    updates: int
    unrolls: int
    start: int = 0

    def version(self, unroll: int) -> int:
        """Version that acts in this process's unroll number ``unroll``."""
        return self.start + unroll * self.updates

    def epoch(self, unroll: int) -> int | None:
        """Number of the restart that is due before this unroll, or ``None``."""
        period = self.unrolls * self.updates
        version = self.version(unroll)
        return version // period if version % period == 0 else None


class Actor:
    """Acts, and sends unrolls until the learner ends the run.

    Args:
        env: n environments.
        acting: chooses their actions.
        sender: stream of records with ``shape.envs`` environments each, a divisor of n.
        shape: of those records.
        poller: waits for the stream; its idle time is reported with each unroll.
        gamma: discount of a transition that ends nothing.
        reward_clip: rewards are clipped to [-clip, clip]; 0 leaves them as they are.
        rng: generator of the actions, the one that ``acting`` draws from.
        restart: restart number -> seed of the environments; may seed ``rng`` anew.
        epoch: number of the restart that this process begins with.
        pace: lock-step, or ``None`` to run freely.
        clock: seconds.
    """

    def __init__(
        self,
        env: BatchedEnv,
        acting: Acting,
        sender: StreamSender,
        shape: UnrollShape,
        poller: Poller,
        *,
        gamma: float,
        reward_clip: float,
        rng: np.random.Generator,
        restart: Callable[[int], int],
        epoch: int = 0,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.env = env
        self._acting = acting
        self._sender = sender
        self._shape = shape
        self._poller = poller
        self._gamma = np.float32(gamma)
        self._reward_clip = reward_clip
        self._restart = restart
        self._rng = rng
        self._epoch = epoch
        self._pace = pace
        self._clock = clock
        self._groups = env.num_envs // shape.envs
        spec, n = env.spec, env.num_envs
        self._stack = np.zeros((n, spec.stack, *spec.frame_shape), dtype=spec.frame_dtype)
        self._observations = self._stack.reshape(n, *spec.observation_shape)
        # The last rows' frames, oldest first: what the next unroll needs before its row 0.
        self._frames = np.zeros((spec.stack - 1, n, *spec.frame_shape), dtype=spec.frame_dtype)
        self._resets = np.ones((spec.stack - 1, n), dtype=bool)
        self._state: npt.NDArray[np.float32] | None = None
        self._row: Rows | None = None

    def run(self) -> None:
        """Makes unrolls until the learner ends the run, then ends the stream."""
        began, waited, unroll = self._clock(), self._poller.idle_s, 0
        while (slots := self._begin(unroll)) is not None:
            self._unroll(slots)
            now, idle = self._clock(), self._poller.idle_s
            for slot in slots:
                slot["waited_s"][...] = (idle - waited) / self._groups
                slot["worked_s"][...] = (now - began - (idle - waited)) / self._groups
                slot["rng"][:] = pack_rng(self._rng)
                self._sender.send()
            began, waited, unroll = now, idle, unroll + 1
        self._poller.wait(self._sender.end, "the learner to take the last unrolls")
        self._sender.close()
        self._acting.close()

    def _begin(self, unroll: int) -> list[Slot] | None:
        """Restarts if due, waits for slots, then takes up new parameters. ``None``: the end."""
        if self._pace is not None:
            epoch = self._pace.epoch(unroll)
        else:
            epoch = self._epoch if self._row is None else None
        if epoch is not None:
            self._reset(epoch)

        def ready() -> list[Slot] | None:
            slots = self._sender.free(self._groups)
            return [] if slots is None and self._acting.stopped else slots

        slots = self._poller.wait(ready, "room in the stream to the learner")
        version = None if self._pace is None else self._pace.version(unroll)
        return slots if slots and self._acting.refresh(version) else None

    def _reset(self, epoch: int) -> None:
        self._row = self.env.reset(self._restart(epoch))
        self._frames.fill(0)
        self._resets.fill(True)
        parts = self._shape.state_shape
        if parts:
            self._state = np.zeros((parts[0], self.env.num_envs, *parts[1:]), dtype=np.float32)

    def _unroll(self, slots: Sequence[Slot]) -> None:
        """Fills one unroll, whose environments are spread over ``slots``."""
        assert self._row is not None
        t_max, before, row = self._shape.length, self.env.spec.stack - 1, self._row
        scatter = _Scatter(slots, self._shape.envs)
        scatter.rows("frames", slice(0, before), self._frames)
        scatter.rows("resets", slice(0, before), self._resets)
        if self._state is not None:
            scatter.rows("state", slice(None), self._state)
        for slot in slots:
            slot["version"][...] = self._acting.version
        for t in range(t_max):
            self._observe(scatter, t, row)
            actions, choice = self._acting.act(self._observations, row.first, self._state)
            scatter.row("actions", t, actions)
            scatter.row("log_probs", t, choice.log_probs)
            self._state = choice.state
            row = self.env.step(actions)
            self._sender.progress()
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
