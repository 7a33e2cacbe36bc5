"""Where the parameters that act come from."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from drl_mpi.comm.parameters import Published
from drl_mpi.comm.shards import Kind, ShardClient

LOOK_EVERY_S = 0.2
"""Seconds between looks at the servers of an actor that waits for room in the stream."""


class Parameters(Protocol):
    """New versions as they come: a `ParameterSubscriber`, or servers that are asked."""

    @property
    def stopped(self) -> bool:
        """Whether no more actions are wanted."""
        ...

    @property
    def due(self) -> bool:
        """Whether an unroll must wait for a version that was asked for."""
        ...

    def begin(self) -> None:
        """An unroll is about to begin."""
        ...

    def newest(self) -> Published | None:
        """The newest version that has arrived since the last call, or ``None``."""
        ...

    def progress(self) -> None:
        """Called after every step: moves what others may wait for."""
        ...

    def close(self) -> None:
        """Gives back what MPI holds."""
        ...


class Owner(Protocol):
    """Who keeps the parameters of this rank's network current."""

    @property
    def version(self) -> int:
        """Of the parameters."""
        ...

    @property
    def steps(self) -> int:
        """Agent decisions consumed so far, by all learners."""
        ...

    def pull(self) -> None:
        """Makes the parameters current. Waits if need be."""
        ...


class PulledParameters:
    """Asks parameter servers (Nair et al. 2015, section 4.1: actors fetch from time to time).

    Args:
        client: of the servers; receives into ``vector``.
        vector: float32 ``[size]``.
        servers: number of them.
        every: unrolls between two pulls.
        is_last: whether a command of the servers means that no more actions are wanted.
        in_turn: servers answer in a fixed order (lock-step): ask only when it is our turn.
    """

    def __init__(
        self,
        client: ShardClient,
        vector: npt.NDArray[np.float32],
        servers: int,
        every: int,
        is_last: Callable[[int], bool],
        *,
        in_turn: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.due = False
        self._client = client
        self._vector = vector
        self._no_versions = [0] * servers
        self._every = every
        self._is_last = is_last
        self._in_turn = in_turn
        self._clock = clock
        self._asked_at = clock()
        self._unrolls = 0
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """See ``Parameters``. Asks the servers now and then."""
        if not (self._in_turn or self._client.busy or self._stopped):
            if self._clock() - self._asked_at > LOOK_EVERY_S:
                self._ask()
        elif self._client.busy and self._client.ready():
            self._look()
        return self._stopped

    def begin(self) -> None:
        """See ``Parameters``."""
        if self._unrolls % self._every == 0 and not self._stopped:
            self.due = True
            if not self._client.busy:
                self._ask()
        self._unrolls += 1

    def newest(self) -> Published | None:
        """See ``Parameters``."""
        if not self.due or not self._client.ready():
            return None
        self.due = False
        self._look()
        answers = self._client.answers
        return Published(
            min(int(answer["version"]) for answer in answers),
            self._vector,
            max(int(answer["steps"]) for answer in answers),
        )

    def progress(self) -> None:
        """See ``Parameters``: nobody waits for this rank."""

    def close(self) -> None:
        """See ``Parameters``. Call it when ``stopped``."""
        self._client.leave()

    def _ask(self) -> None:
        self._client.request(Kind.PULL, self._no_versions)
        self._asked_at = self._clock()

    def _look(self) -> None:
        self._stopped = any(
            self._is_last(int(answer["command"])) for answer in self._client.answers
        )
