"""Lanes: what a learner that acts for its actors keeps of each group of environments.

A lane has its group's frame stacks and recurrent states, and writes the unroll that they make. It
belongs to one thread at a time: to the one that talks MPI, or to the predictor that was given it.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from drl_mpi.comm.record import Slot
from drl_mpi.envs.base import Rows
from drl_mpi.experience.rng import pack_rng
from drl_mpi.experience.unroll import UnrollShape
from drl_mpi.experience.unroll_writer import UnrollWriter


class Lane:
    """One group of an actor's environments.

    Args:
        source: rank of the actor.
        channel: number of the group.
        shape: of the records of its unrolls, whose ``envs`` divides n.
        envs: n, environments of the group.
        depth: unrolls that may wait to be learnt from, beside the one that is being made.
        gamma, reward_clip: as ``UnrollWriter`` has them.
    """

    def __init__(
        self,
        source: int,
        channel: int,
        shape: UnrollShape,
        envs: int,
        depth: int,
        *,
        gamma: float,
        reward_clip: float,
    ) -> None:
        self.source = source
        self.channel = channel
        self.envs = envs
        self.unrolls = 0
        """Begun so far, since the process started."""
        self.rows: Rows | None = None
        """What the environments came to; valid until they are answered."""
        self.state: npt.NDArray[np.float32] | None = None
        """float32 ``[parts, n, hidden]`` before those rows, or ``None`` without a core."""
        self.asked_at = 0.0
        """When they arrived."""
        self._state_shape = shape.state_shape
        self._writer = UnrollWriter(shape, envs, gamma=gamma, reward_clip=reward_clip)
        record = shape.record()
        self._free = deque(
            [Slot(record) for _ in range(self._writer.records)] for _ in range(depth + 1)
        )
        self._filling: list[Slot] | None = None
        self._versions = np.zeros(shape.length, dtype=np.int64)
        self._waited_s = self._worked_s = 0.0

    @property
    def records(self) -> int:
        """Records of an unroll."""
        return self._writer.records

    @property
    def observations(self) -> npt.NDArray[np.generic]:
        """``[n, *observation_shape]`` of the rows that were observed."""
        return self._writer.observations

    @property
    def between(self) -> bool:
        """Whether the next rows begin an unroll."""
        return self._filling is None

    @property
    def has_room(self) -> bool:
        """Whether there is a record to write to."""
        return self._filling is not None or bool(self._free)

    def restart(self) -> None:
        """The environments restart: an unfinished unroll is forgotten, so are stacks and states."""
        if self._filling is not None:
            self._free.append(self._filling)
            self._filling = None
        self._writer.restart()
        if self._state_shape:
            parts, *rest = self._state_shape
            self.state = np.zeros((parts, self.envs, *rest), dtype=np.float32)

    def note(self, waited_s: float, worked_s: float) -> None:
        """Adds seconds that the actor waited and worked; they go with the next unroll."""
        self._waited_s += waited_s
        self._worked_s += worked_s

    def arrive(self, rows: Rows) -> list[Slot] | None:
        """Takes new rows. Returns the unroll's records if they complete one."""
        self.rows = rows
        slots, writer = self._filling, self._writer
        if slots is None:
            return None
        writer.follow(rows)
        if not writer.complete:
            return None
        writer.finish(rows)
        for slot in slots:
            slot["version"][...] = self._versions[0]
            slot["waited_s"][...] = self._waited_s / len(slots)
            slot["worked_s"][...] = self._worked_s / len(slots)
        self._waited_s = self._worked_s = 0.0
        self._filling = None
        return slots

    @property
    def lag_inside(self) -> int:
        """Versions between the first and the last action of the unroll that was completed last."""
        return int(self._versions[-1] - self._versions[0])

    def release(self, slots: list[Slot]) -> None:
        """Takes back the records of an unroll that was consumed."""
        self._free.append(slots)

    def observe(self) -> None:
        """Writes the rows and makes ``observations`` show them; begins an unroll if need be."""
        assert self.rows is not None
        if self._filling is None:
            self._filling = self._free.popleft()
            self._writer.begin(self._filling, self.state)
            self.unrolls += 1
        self._writer.observe(self.rows)

    def decide(
        self,
        actions: npt.NDArray[np.int64],
        log_probs: npt.NDArray[np.float32],
        state: npt.NDArray[np.float32] | None,
        version: int,
        rng: np.random.Generator,
    ) -> None:
        """What a predictor chose for the rows.

        Args:
            actions: ``[n]``.
            log_probs: ``[n]``, of the policy that chose them.
            state: ``[parts, n, hidden]`` after them.
            version: of the parameters that chose.
            rng: that drew; its state goes with the unroll's last actions.
        """
        writer, slots = self._writer, self._filling
        assert slots is not None
        writer.decide(actions, log_probs)
        self._versions[writer.t] = version
        self.state = state
        if writer.t == len(self._versions) - 1:
            for slot in slots:
                slot["rng"][:] = pack_rng(rng)
