"""Where a learner's batches come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from drl_mpi.experience.statistics import Statistics

REPLAY = "replay"
"""Name of a replay among the keepsakes."""

B_co = TypeVar("B_co", bound=Statistics, covariant=True)


class Source(Protocol[B_co]):
    """A queue, a replay, or an actor in the same rank."""

    def next(self) -> B_co:
        """The next batch; valid until the call after this one."""
        ...

    def idle(self) -> None:
        """Called while this learner waits for the others: keeps actors going that feed both."""
        ...

    def drain(self) -> bool | None:
        """Throws away what still arrives; ``True`` once nothing more will, else ``None``."""
        ...

    def close(self) -> None:
        """Gives back what MPI holds. Call it when drained."""
        ...

    def gauges(self) -> dict[str, float]:
        """Numbers to log, since the last call."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to go on, as far as it is small."""
        ...

    def keepsakes(self) -> dict[str, Any]:
        """What a checkpoint needs beyond that, of this learner alone; it may be large."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from both together; large arrays of a replay may be ``StoredRows``."""
        ...
