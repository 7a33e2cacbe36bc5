"""What an actor without a network asks its learner, and what it is told. Loads no torch."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from drl_mpi.comm.record import Field, Record, Slot
from drl_mpi.envs.base import EnvSpec, Rows

FLAGS = ("terminated", "reset", "first")
"""Order of the rows of a request's field ``flags``."""


class Kind(IntEnum):
    """Of a request."""

    HELLO = 0
    """Nothing was played yet."""
    ROWS = 1
    """A row of every environment, which wants actions."""
    AGAIN = 2
    """The actor lives; its last rows are still to be answered."""


class Command(IntEnum):
    """Of an answer."""

    STEP = 0
    """Play the actions."""
    RESTART = 1
    """Restart the environments; ``epoch`` numbers the restarts, for their seeds."""
    WAIT = 2
    """Nothing to do yet: say again that you live."""
    END = 3
    """No more actions are wanted: the run is over."""
    DISMISS = 4
    """No more actions for this actor, whose requests made no sense; the run goes on."""


def request_record(spec: EnvSpec, envs: int) -> Record:
    """A row of n environments: newest frames only, as ``envs.Rows`` has it.

    Args:
        spec: the environment.
        envs: n.
    """
    return Record(
        [
            Field("kind", "int64"),
            Field("number", "int64"),  # of the request on its channel, from 0
            Field("frame", spec.frame_dtype, (envs, *spec.frame_shape)),
            Field("flags", "uint8", (len(FLAGS), envs)),
            Field("reward", "float32", (envs,)),
            Field("episode_return", "float64", (envs,)),
            Field("episode_length", "int64", (envs,)),
            # Seconds since the actor's last request, of any channel, that it waited, and worked.
            Field("waited_s", "float64"),
            Field("worked_s", "float64"),
        ]
    )


def answer_record(envs: int) -> Record:
    """Actions for n environments, or another command."""
    return Record(
        [
            Field("command", "int64"),
            Field("number", "int64"),  # of the request that it answers
            Field("epoch", "int64"),
            Field("actions", "int64", (envs,)),
        ]
    )


def write_rows(slot: Slot, rows: Rows) -> None:
    """Fills a request."""
    fields = slot.fields
    fields["frame"][:] = rows.frame
    for i, name in enumerate(FLAGS):
        fields["flags"][i] = getattr(rows, name)
    for name in ("reward", "episode_return", "episode_length"):
        fields[name][:] = getattr(rows, name)


def read_rows(slot: Slot) -> Rows:
    """Views of a request; valid until it is answered."""
    fields = slot.fields
    terminated, reset, first = fields["flags"].view(np.bool_)
    return Rows(
        frame=fields["frame"],
        reward=fields["reward"],
        terminated=terminated,
        reset=reset,
        first=first,
        episode_return=fields["episode_return"],
        episode_length=fields["episode_length"],
    )


def fault_of(slot: Slot, expected: int, fresh: bool) -> str:
    """What is wrong with a request, in words; empty if nothing is.

    Args:
        slot: the request.
        expected: its number.
        fresh: whether rows are due: a ``HELLO`` comes first and never again, and only ``AGAIN``
            follows ``WAIT``.
    """
    fields = slot.fields
    kind, number = int(fields["kind"]), int(fields["number"])
    if number != expected:
        return f"request number {number} where {expected} is due"
    allowed = Kind.HELLO if number == 0 else Kind.ROWS if fresh else Kind.AGAIN
    if kind != allowed:
        return f"a request of kind {kind} where {allowed.name} ({allowed.value}) is due"
    if kind != Kind.HELLO and fields["flags"].max() > 1:
        return f"a flag of {fields['flags'].max()} where 0 and 1 are allowed"
    return ""
