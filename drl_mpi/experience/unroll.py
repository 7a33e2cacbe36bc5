"""The unroll: what one actor's environments went through in T steps under one policy version.

Row t holds the observation x_t with the action a_t chosen there; ``rewards[t]``, ``discounts[t]``
and ``resets[t + 1]`` describe the transition from x_t to x_{t+1}. An unroll has T transitions and
T+1 rows: its last row is the next unroll's first, and serves here as the bootstrap.

Only the newest frame of every row is kept, preceded by the ``stack - 1`` frames from before row 0,
so that an unroll is complete in itself: it can be replayed, reordered or dropped. That costs
``stack / T`` more than the newest frames alone (20 % at T = 20), against the fourfold cost of
sending stacks.
"""

from __future__ import annotations

from dataclasses import dataclass

from drl_mpi.comm.record import Field, Record
from drl_mpi.envs import EnvSpec

RNG_WORDS = 6
"""uint64 words that hold the state of a PCG64 generator."""


@dataclass(frozen=True)
class UnrollShape:
    """Everything that an unroll's layout depends on.

    Args:
        spec: the environment.
        length: T, transitions per unroll.
        envs: n, environments side by side in one record.
        state_shape: recurrent state of one environment, ``()`` for a network without a core;
            the leading axis counts the parts (hidden, cell).
    """

    spec: EnvSpec
    length: int
    envs: int
    state_shape: tuple[int, ...] = ()

    @property
    def frame_rows(self) -> int:
        """Rows of frames: those before row 0 that its stack needs, then T+1."""
        return self.spec.stack - 1 + self.length + 1

    def record(self) -> Record:
        """The wire, batch and replay layout."""
        t, n, rows = self.length, self.envs, self.frame_rows
        state = (self.state_shape[0], n, *self.state_shape[1:]) if self.state_shape else (0,)
        return Record(
            [
                Field("frames", self.spec.frame_dtype, (rows, n, *self.spec.frame_shape)),
                Field("resets", "bool", (rows, n)),
                Field("firsts", "bool", (t + 1, n)),
                Field("actions", "int64", (t, n)),
                Field("rewards", "float32", (t, n)),
                Field("discounts", "float32", (t, n)),
                Field("log_probs", "float32", (t, n)),
                Field("state", "float32", state),
                Field("version", "int64"),
                # Unclipped return and length of the games that ended with each transition.
                Field("episode_returns", "float64", (t, n)),
                Field("episode_lengths", "int64", (t, n)),
                # Seconds since the last unroll that the actor waited, and that it worked.
                Field("waited_s", "float64"),
                Field("worked_s", "float64"),
                # State of the actor's action RNG after this unroll, for the checkpoint.
                Field("rng", "uint64", (RNG_WORDS,)),
            ]
        )


PER_ENVIRONMENT = (
    "frames",
    "resets",
    "firsts",
    "actions",
    "rewards",
    "discounts",
    "log_probs",
)
"""Fields with axes ``[rows, environments, ...]``; ``state`` has ``[parts, environments, ...]``."""
