"""A loss that remembers nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PureLoss:
    """What such a loss answers to the learner; see ``roles.loss.Loss``."""

    def prepare(self, version: int) -> None:
        """Nothing to prepare."""

    def state(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""
