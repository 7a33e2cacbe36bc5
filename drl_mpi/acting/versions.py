"""Versions of the parameters inside one process, for threads that compute with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class Version:
    """One version. Nobody writes to it any more, so who holds it sees all of it or nothing."""

    number: int
    steps: int
    """Agent decisions behind it, for schedules."""
    vector: torch.Tensor
    """float32 ``[size]``."""


class Versions:
    """Holds the newest version.

    Args:
        device: of the threads that compute with it.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.newest: Version | None = None
        """Replaced as a whole: a thread that has read it may keep it as long as it likes."""
        self._device = device or torch.device("cpu")

    def publish(self, vector: npt.NDArray[np.float32], version: int, steps: int) -> None:
        """Makes a copy of ``vector`` (float32 ``[size]``) the newest version."""
        copied = torch.empty(len(vector), dtype=torch.float32, device=self._device)
        copied.copy_(torch.from_numpy(vector))
        if copied.is_cuda:  # other threads have other streams: it must be there before they look
            torch.cuda.current_stream(self._device).synchronize()
        self.newest = Version(version, steps, copied)
