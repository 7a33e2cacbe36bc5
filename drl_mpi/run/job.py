"""What a launcher asks of a job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from drl_mpi.run.layout import Layout


class Job(Protocol):
    """What can be launched: a config that knows how to prepare and play its system."""

    @property
    def patience_s(self) -> float:
        """Seconds that ranks may take to start and to load."""
        ...

    def wanted(self, ranks: int | None) -> Mapping[str, int | None]:
        """Ranks per role, as ``layout.plan`` takes them: ``None`` to choose.

        Args:
            ranks: of the world; ``None`` while that is open.
        """
        ...

    @property
    def path(self) -> Path:
        """The run folder."""
        ...

    @property
    def uses_gpus(self) -> bool:
        """Whether learners may use GPUs."""
        ...

    def gpus(self) -> int:
        """GPUs of this host that learners may use."""
        ...

    def check_gpus(self, found: int) -> None:
        """Raises UsageError if learners need GPUs, and ``found`` is 0."""
        ...

    def check(self) -> None:
        """Raises UsageError for values that cannot work."""
        ...

    def check_layout(self, layout: Layout) -> None:
        """Raises UsageError for a layout that the system cannot use."""
        ...

    def inspect(self, layout: Layout) -> Any:
        """Looks at the environment and the run folder; what every rank has to know of them.

        Changes nothing. Returns ``None`` when there is nothing left to do. Raises UsageError.
        """
        ...

    def claim(self, *, clear_stop: bool) -> None:
        """Makes the run folder ready for this run. Raises UsageError."""
        ...

    def play(self, world: Any, layout: Layout, prepared: Any) -> int:
        """Plays this rank's role to the end and returns the exit code."""
        ...
