"""An actor that plays for real, into a stream that keeps everything, under scripted parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from drl_mpi import envs
from drl_mpi.acting.local import Choice
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.record import Slot
from drl_mpi.experience import Batch, UnrollShape
from drl_mpi.experience.rng import make_rng
from drl_mpi.roles.actor import Actor
from drl_mpi.roles.unroller import Unroller


class Tape:
    """A sender whose ring is as short as allowed; what was sent stays readable as copies."""

    def __init__(self, shape: UnrollShape, groups: int) -> None:
        self.ring = [Slot(shape.record()) for _ in range(groups)]
        self.sent: list[dict[str, np.ndarray]] = []
        self.ended = False
        self.driven = 0
        """Calls of ``progress``."""
        self._next = 0

    def free(self, count: int) -> list[Slot]:
        return [self.ring[(self._next + i) % len(self.ring)] for i in range(count)]

    def send(self) -> None:
        slot = self.ring[self._next]
        self.sent.append({name: np.array(slot[name]) for name in slot.fields})
        slot.buffer.fill(1)  # whoever reads it afterwards reads nonsense
        self._next = (self._next + 1) % len(self.ring)

    def progress(self) -> None:
        self.driven += 1

    def end(self) -> bool:
        self.ended = True
        return True

    def close(self) -> None:
        assert self.ended


@dataclass
class Script:
    """Acts at random for so many unrolls, and keeps what it saw."""

    unrolls: int
    num_actions: int
    rng: np.random.Generator
    version: int = -1
    stopped: bool = False
    seen: list[dict[str, Any]] = field(default_factory=list)
    asked: list[int | None] = field(default_factory=list)
    closed: bool = False

    def refresh(self, version: int | None = None) -> bool:
        self.asked.append(version)
        self.version += 3
        return len(self.asked) <= self.unrolls

    def close(self) -> None:
        self.closed = True

    def act(self, observations, first, state):  # noqa: ARG002 (Acting's names)
        actions = self.rng.integers(self.num_actions, size=len(first))
        log_probs = np.log(self.rng.uniform(0.1, 0.9, len(first))).astype(np.float32)
        self.seen.append(
            {
                "observations": observations.copy(),
                "first": first.copy(),
                "actions": actions,
                "log_probs": log_probs,
                "version": self.version,
            }
        )
        return actions, Choice(log_probs, None)


@dataclass
class Played:
    shape: UnrollShape
    acting: Any
    tape: Tape
    unroller: Unroller
    rng: np.random.Generator

    def batches(self) -> list[Batch]:
        """One batch per unroll, as wide as the actor."""
        groups = self.unroller.records
        wide = UnrollShape(
            self.shape.spec, self.shape.length, groups * self.shape.envs, self.shape.state_shape
        )
        batches = []
        for begin in range(0, len(self.tape.sent), groups):
            batch = Batch(wide)
            batch.begin()
            for group, fields in enumerate(self.tape.sent[begin : begin + groups]):
                batch.write(group * self.shape.envs, fields)
                batch.note(fields)
            batches.append(batch)
        return batches


@pytest.fixture
def play():
    """play(env_id, ...) -> Played: the unrolls that an actor made."""

    def run(
        env_id, *, options=None, num_envs=4, width=None, length=6, unrolls=5, gamma=0.9,
        reward_clip=1.0, seed=30, make_acting=None, state_shape=(), pace=None, restarts=None,
    ):  # fmt: skip
        options = options or envs.EnvOptions()
        env = envs.make(env_id, num_envs, options)
        shape = UnrollShape(env.spec, length, width or num_envs, state_shape)
        tape, rng = Tape(shape, num_envs // shape.envs), make_rng(seed)
        if make_acting:
            acting = make_acting(env.spec, rng)
        else:
            acting = Script(unrolls, env.spec.num_actions, rng)

        def restart(epoch):
            if restarts is not None:
                restarts.append((len(acting.seen), epoch))
            return seed + 1000 * epoch

        unroller = Unroller(
            env, acting, shape, gamma=gamma, reward_clip=reward_clip, restart=restart, pace=pace,
            progress=tape.progress,
        )  # fmt: skip
        Actor(unroller, tape, Poller(1.0), rng).run()
        assert tape.ended
        return Played(shape, acting, tape, unroller, rng)

    return run
