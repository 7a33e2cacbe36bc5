"""Makes unrolls: environments, and a way of choosing actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drl_mpi.acting.local import Acting
from drl_mpi.comm.record import Slot
from drl_mpi.envs import BatchedEnv, Rows
from drl_mpi.experience.unroll import UnrollShape
from drl_mpi.experience.unroll_writer import UnrollWriter


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
        self._writer = UnrollWriter(shape, env.num_envs, gamma=gamma, reward_clip=reward_clip)
        self.records = self._writer.records
        """Records that one unroll fills."""
        self._shape = shape
        self._restart = restart
        self._epoch = epoch
        self._pace = pace
        self._progress = progress
        self._unroll = 0
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
        writer, row = self._writer, self._row
        writer.begin(slots, self._state)
        for slot in slots:
            slot["version"][...] = self.acting.version
        while not writer.complete:
            writer.observe(row)
            actions, choice = self.acting.act(writer.observations, row.first, self._state)
            writer.decide(actions, choice.log_probs)
            self._state = choice.state
            row = self.env.step(actions)
            self._progress()
            writer.follow(row)
        writer.finish(row)
        self._row = row
        self._unroll += 1

    def _reset(self, epoch: int) -> None:
        self._row = self.env.reset(self._restart(epoch))
        self._writer.restart()
        parts = self._shape.state_shape
        if parts:
            self._state = np.zeros((parts[0], self.env.num_envs, *parts[1:]), dtype=np.float32)
