"""Steps, frames and versions: how they follow from one another."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counting:
    """Counts at any version of this process's run.

    Args:
        steps_per_update: agent decisions that all learners together consume per update.
        action_repeat: frames per step.
        start_version: version at which this process began.
        start_steps: steps consumed before that, maybe by another number of learners.
    """

    steps_per_update: int
    action_repeat: int
    start_version: int = 0
    start_steps: int = 0

    def steps(self, version: int) -> int:
        """Steps consumed by the updates up to ``version``."""
        return self.start_steps + (version - self.start_version) * self.steps_per_update

    def frames(self, version: int) -> int:
        """Frames behind these steps."""
        return self.steps(version) * self.action_repeat

    def version_at(self, frames: int) -> int:
        """The first version of this process's run with at least ``frames`` frames behind it."""
        missing = frames - self.start_steps * self.action_repeat
        per_update = self.steps_per_update * self.action_repeat
        return self.start_version + max(0, -(-missing // per_update))
