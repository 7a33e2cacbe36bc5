"""What a central service of actions notes about itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

KEPT = 10_000
"""Newest values of which quantiles are taken."""


class ServiceMeters:
    """Counts between two rows of progress.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sizes: deque[int] = deque(maxlen=KEPT)
        self.waits: deque[float] = deque(maxlen=KEPT)
        """The newest waiting times, in seconds."""
        self._lags: deque[int] = deque(maxlen=KEPT)
        self._clear()

    def batch(self, size: int) -> None:
        """A batch of so many environments got its actions."""
        self._sizes.append(size)
        self._batches += 1
        self._predictions += size

    def wait(self, seconds: float) -> None:
        """A request was answered so long after it arrived."""
        self.waits.append(seconds)

    def lag(self, versions: int) -> None:
        """An unroll has so many versions between its first and its last action."""
        self._lags.append(versions)

    def take(self) -> dict[str, float]:
        """The numbers since the last call; NaN where nothing happened."""
        numbers = self.look()
        self._clear()
        return numbers

    def look(self) -> dict[str, float]:
        """As ``take``, and goes on counting."""
        elapsed = max(self._clock() - self._since, 1e-9)
        nan = float("nan")
        low, high = _quantiles(self._sizes, 10, 90)
        middle, late = _quantiles(self.waits, 50, 99)
        return {
            "pps": self._predictions / elapsed,
            "predict_batch_mean": self._predictions / self._batches if self._batches else nan,
            "predict_batch_p10": low,
            "predict_batch_p90": high,
            "request_wait_ms_p50": middle * 1e3,
            "request_wait_ms_p99": late * 1e3,
            "unroll_lag_mean": float(np.mean(self._lags)) if self._lags else nan,
            "unroll_lag_max": float(max(self._lags)) if self._lags else nan,
        }

    def _clear(self) -> None:
        self._since = self._clock()
        self._batches = self._predictions = 0
        for values in (self._sizes, self.waits, self._lags):
            values.clear()


def _quantiles(values: deque[int] | deque[float], *percent: float) -> tuple[float, ...]:
    if not values:
        return (float("nan"),) * len(percent)
    return tuple(float(found) for found in np.percentile(values, percent))
