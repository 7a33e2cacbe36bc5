"""The learner's filter of outlier gradients. No torch: plain numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping

FLOAT32_MAX = 3.4028234663852886e38
ROUNDING = 1e-6
"""Relative noise of a float32 loss: where all values are alike, their last bits are no outliers."""


class OutlierFilter:
    """Drops gradients out of the ordinary before they are sent (Nair et al. 2015, section 5).

    Each learner tracks mean and standard deviation of its absolute loss and drops gradients whose
    absolute loss is above mean + threshold deviations. Ours besides: the same test on the norm of
    the gradient, for an outlier that the loss does not show; and what follows.

    Both statistics are plain averages at first and exponential ones later; only accepted values
    enter. So that a lasting shift (a new level of the game, a new target network) does not lock the
    learner out for ever, the filter counts by how many rejections outnumber acceptances, from zero
    up. An outlier is the exception: once the count reaches `patience` the rejected have become the
    rule, the statistics are forgotten, and the next `warmup` finite gradients pass untested. An
    outlier among those widens the limit until the averages forget it: the filter errs towards
    passing.

    Args:
        threshold: deviations above the mean that pass; 0 switches this test off, never the test
            for finite values. The paper names no number.
        warmup: accepted gradients before the test begins, at least 2.
        decay: of the averages, per accepted gradient; at 0.99 the last 100 count.
        patience: surplus of rejections after which the statistics begin again.

    Attributes:
        seen: gradients judged so far, across restores.
        dropped: those of them that were rejected, for whatever reason.

    Raises:
        ValueError: for settings outside of these.
    """

    def __init__(
        self, threshold: float, warmup: int = 100, decay: float = 0.99, patience: int = 50
    ) -> None:
        _check("threshold", threshold, 0.0 <= threshold < math.inf, "0 (off) or more, finite")
        _check("warmup", warmup, warmup >= 2, "2 or more")
        _check("decay", decay, 0.0 < decay < 1.0, "between 0 and 1")
        _check("patience", patience, patience >= 1, "1 or more")
        self.threshold, self.warmup, self.decay, self.patience = threshold, warmup, decay, patience
        self.seen = self.dropped = 0
        self._begin()

    def _begin(self) -> None:
        self._accepted = self._surplus = 0
        self._means, self._variances = [0.0, 0.0], [0.0, 0.0]

    def accept(self, loss: float, gradient_norm: float) -> bool:
        """Judges one gradient and learns from it; False means: do not send it.

        Args:
            loss: of the batch; its absolute value counts.
            gradient_norm: L2 norm before clipping.

        Returns:
            False for a loss or norm that is not finite in float32, and for an outlier.
        """
        self.seen += 1
        values = abs(loss), abs(gradient_norm)
        if not all(value <= FLOAT32_MAX for value in values):  # nor is NaN
            self.dropped += 1
            return False
        if self._is_outlier(values):
            self.dropped += 1
            self._surplus += 1
            if self._surplus >= self.patience:
                self._begin()
            return False
        self._surplus = max(self._surplus - 1, 0)
        self._learn(values)
        return True

    def state(self) -> dict[str, int | float]:
        """Everything to go on from, as plain numbers; settings are not part of it."""
        return {
            "seen": self.seen,
            "dropped": self.dropped,
            "accepted": self._accepted,
            "surplus": self._surplus,
            "loss_mean": self._means[0],
            "loss_variance": self._variances[0],
            "norm_mean": self._means[1],
            "norm_variance": self._variances[1],
        }

    def restore(self, state: Mapping[str, int | float]) -> None:
        """Goes on from `state`, exactly.

        Raises:
            ValueError: and changes nothing, if this is no filter's state.
        """
        wrong = set(state) != set(self.state())
        if wrong or not all(0 <= value < math.inf for value in state.values()):
            raise ValueError(
                f"not a state of OutlierFilter: {dict(state)}; allowed: finite numbers of 0 or "
                f"more for {', '.join(self.state())}; is the checkpoint from another version?"
            )
        self.seen, self.dropped = int(state["seen"]), int(state["dropped"])
        self._accepted, self._surplus = int(state["accepted"]), int(state["surplus"])
        self._means = [float(state["loss_mean"]), float(state["norm_mean"])]
        self._variances = [float(state["loss_variance"]), float(state["norm_variance"])]

    def _is_outlier(self, values: tuple[float, float]) -> bool:
        if self.threshold == 0.0 or self._accepted < self.warmup:
            return False
        return any(
            value > mean + self.threshold * math.sqrt(variance) + ROUNDING * mean
            for value, mean, variance in zip(values, self._means, self._variances)
        )

    def _learn(self, values: tuple[float, float]) -> None:
        self._accepted += 1
        weight = max(1.0 / self._accepted, 1.0 - self.decay)
        for i, value in enumerate(values):
            delta = value - self._means[i]
            self._means[i] += weight * delta
            self._variances[i] = (1.0 - weight) * (self._variances[i] + weight * delta * delta)


def _check(name: str, value: float, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name} is {value}, allowed: {allowed}; change it")
