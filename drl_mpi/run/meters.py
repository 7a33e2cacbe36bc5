"""The meters behind a row of progress.csv. Pure arithmetic: the clock is injected.

What is "between rows" starts again at zero each time it is taken.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Clock = Callable[[], float]


class Episodes:
    """Counts finished episodes and averages the last `window` unclipped returns."""

    def __init__(self, window: int = 100) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1")
        self.window = window
        self.count = 0
        self._returns: deque[float] = deque(maxlen=window)

    def add(self, returns: npt.ArrayLike, count: int | None = None) -> None:
        """Takes the returns of newly finished episodes, oldest first: any shape, also empty.

        `count` says how many finished, if that is more than the returns that are known.
        Raises ValueError, and takes none, if a return is not finite.
        """
        values = np.asarray(returns, np.float64).ravel()
        if not np.isfinite(values).all():
            raise ValueError(f"episode returns must be finite: {values.tolist()}")
        self.count += values.size if count is None else count
        self._returns.extend(values.tolist())

    @property
    def mean(self) -> float:
        """Mean of the last `window` returns; NaN before the first."""
        return math.fsum(self._returns) / len(self._returns) if self._returns else math.nan

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """count int64 [], returns float64 [window]: oldest first, then NaN."""
        returns = np.full(self.window, np.nan)
        returns[: len(self._returns)] = self._returns
        return {"count": np.array(self.count, np.int64), "returns": returns}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Goes on from `state`, whose window may differ. Raises ValueError for anything else."""
        count = np.asarray(state["count"])
        returns = np.asarray(state["returns"], np.float64)
        known = returns[~np.isnan(returns)]
        if (
            count.shape != ()
            or count.dtype.kind not in "iu"
            or returns.ndim != 1
            or not np.isfinite(known).all()
            or known.size > count
        ):
            raise ValueError(f"not a state of Episodes: count {count!r}, returns {returns.shape}")
        self.count = int(count)
        self._returns = deque(known.tolist(), maxlen=self.window)


class Rate:
    """Something per second, between one `take` and the next."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._sum = 0.0

    def add(self, amount: float) -> None:
        self._sum += amount

    def take(self) -> float:
        """Per second since the last `take`; NaN if no time has passed. Starts again at zero."""
        now = self._clock()
        elapsed = now - self._since
        rate = self._sum / elapsed if elapsed > 0 else math.nan
        self._since, self._sum = now, 0.0
        return rate


class Share:
    """A part of a whole, say seconds waited of seconds lived, summed over ranks and time."""

    def __init__(self) -> None:
        self._part = self._whole = 0.0

    def add(self, part: float, whole: float) -> None:
        self._part += part
        self._whole += whole

    def take(self) -> float:
        """0 to 1 since the last `take`; NaN if nothing was added. Starts again at zero."""
        share = min(max(self._part / self._whole, 0.0), 1.0) if self._whole > 0 else math.nan
        self._part = self._whole = 0.0
        return share


class Lag:
    """Mean and maximum of a number, say the policy lag of each unroll in versions."""

    def __init__(self) -> None:
        self._sum, self._count, self._max = 0.0, 0, math.nan

    def add(self, values: npt.ArrayLike) -> None:
        """Any shape, also empty."""
        array = np.asarray(values, np.float64)
        if array.size:
            self._sum += float(array.sum())
            self._count += array.size
            self._max = float(np.fmax(self._max, array.max()))

    def merge(self, total: float, count: int, largest: float) -> None:
        """What somebody else counted: sum, number and maximum; nothing if the number is 0."""
        if count:
            self._sum += total
            self._count += count
            self._max = float(np.fmax(self._max, largest))

    def take(self) -> tuple[float, float]:
        """(mean, maximum) since the last `take`; NaN if nothing was added. Starts again."""
        mean = self._sum / self._count if self._count else math.nan
        taken = mean, self._max
        self._sum, self._count, self._max = 0.0, 0, math.nan
        return taken


class Metrics:
    """All the meters behind a row. A learner feeds them and calls `row` at each report."""

    def __init__(self, clock: Clock = time.monotonic, window: int = 100) -> None:
        self.episodes = Episodes(window)
        self.policy_lag = Lag()
        self.actor_wait = Share()
        self.learner_wait = Share()
        self._clock = clock
        self._start = clock()
        self._frames = 0
        self._frame_rate = Rate(clock)

    @property
    def time_s(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self._clock() - self._start

    def row(self, *, frames: int, steps: int, updates: int, version: int) -> dict[str, float]:
        """The standard columns now, COLUMNS in order. Starts the between-rows meters again."""
        self._frame_rate.add(frames - self._frames)
        self._frames = frames
        lag_mean, lag_max = self.policy_lag.take()
        return {
            "time_s": self.time_s,
            "frames": frames,
            "steps": steps,
            "updates": updates,
            "version": version,
            "episodes": self.episodes.count,
            "return_mean": self.episodes.mean,
            "frames_per_s": self._frame_rate.take(),
            "policy_lag_mean": lag_mean,
            "policy_lag_max": lag_max,
            "actor_wait": self.actor_wait.take(),
            "learner_wait": self.learner_wait.take(),
        }

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """For the checkpoint: the episodes' state and time_s, float64 []."""
        return {**self.episodes.state(), "time_s": np.array(self.time_s, np.float64)}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]], frames: int) -> None:
        """Goes on from `state`, taken at `frames`. Raises ValueError for anything else."""
        time_s = float(np.asarray(state["time_s"], np.float64))
        if not (math.isfinite(time_s) and time_s >= 0):
            raise ValueError(f"not a state of Metrics: time_s {time_s}")
        self.episodes.restore(state)
        self._start = self._clock() - time_s
        self._frames = frames
        self._frame_rate = Rate(self._clock)
