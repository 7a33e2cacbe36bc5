"""Exploration by chance: schedules of epsilon, and the epsilon-greedy choice. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class EpsilonSchedule:
    """A line from `start` down to `end`, then flat.

    Mnih et al. 2015 go from 1 to 0.1 over the first 1M frames, Gorilla over the first 1M global
    updates.

    Args:
        start: epsilon at count 0, at most 1.
        end: epsilon from `horizon` on, at least 0 and at most `start`.
        horizon: count at which `end` is reached: frames or updates, whatever is counted.

    Raises:
        ValueError: for values outside of these.
    """

    start: float
    end: float
    horizon: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.end <= self.start <= 1.0:
            raise ValueError(
                f"epsilon goes from {self.start} to {self.end}, allowed: 1 >= start >= end >= 0; "
                "change them"
            )
        if not self.horizon >= 1:
            raise ValueError(f"horizon is {self.horizon}, allowed: 1 or more; change it")

    def __call__(self, count: int) -> float:
        """Epsilon after `count` frames or updates: exactly `end` from the horizon on."""
        if count >= self.horizon:
            return self.end
        epsilon = self.start + (self.end - self.start) * count / self.horizon
        return min(max(epsilon, self.end), self.start)


def per_actor_epsilons(num: int, base: float = 0.4, alpha: float = 7.0) -> npt.NDArray[np.float64]:
    """One epsilon per actor, base^(1 + alpha i / (num - 1)) (Horgan et al. 2018, section 4).

    Args:
        num: actors, at least 1; a single one gets `base`.
        base: of the first actor, above 0 and at most 1.
        alpha: how much less the last one explores, at least 0.

    Returns:
        float64 ``[num]``, falling.

    Raises:
        ValueError: for values outside of these.
    """
    if num < 1:
        raise ValueError(f"num is {num}, allowed: 1 or more actors; change it")
    if not 0.0 < base <= 1.0:
        raise ValueError(f"base is {base}, allowed: above 0, at most 1; change it")
    if not 0.0 <= alpha < np.inf:
        raise ValueError(f"alpha is {alpha}, allowed: 0 or more; change it")
    return np.power(base, 1.0 + alpha * np.arange(num) / max(num - 1, 1))


def epsilon_greedy(
    q: npt.NDArray[np.float32],
    epsilons: float | npt.NDArray[np.floating[Any]],
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """With probability epsilon any action, all alike; otherwise the best, the first among equals.

    Args:
        q: float32 ``[n, actions]``, the values of the actions.
        epsilons: 0 to 1, one for all rows or ``[n]``.
        rng: 2 n uniform numbers are drawn, whatever is chosen.

    Returns:
        Actions int64 ``[n]``, and their log-probabilities float32 ``[n]`` under this policy, the
        greedy action's chance to be drawn at random included.

    Raises:
        ValueError: for NaN in `q` (names the row), and for epsilons outside 0 to 1.
    """
    if q.ndim != 2 or q.shape[1] < 1:
        raise ValueError(f"q has shape {q.shape}, allowed: [n, actions], 1 action or more")
    n, actions = q.shape
    bad = np.flatnonzero(np.isnan(q).any(axis=1))
    if bad.size:
        raise ValueError(
            f"action values of row {bad[0]} are {q[bad[0]].tolist()} ({bad.size} of {n} rows), "
            "allowed: no NaN; has training diverged? Try a lower learning rate"
        )
    epsilon = np.asarray(epsilons, np.float64)
    if epsilon.shape not in ((), (n,)) or not ((epsilon >= 0.0) & (epsilon <= 1.0)).all():
        raise ValueError(f"epsilons are {epsilons}, allowed: 0 to 1, one or {n}; change them")
    explore, which = rng.random((2, n))
    greedy = q.argmax(axis=1)
    # Numbers below 1 give products below `actions`, rounding included.
    chosen = np.where(explore < epsilon, (which * actions).astype(np.int64), greedy)
    others = epsilon * (actions - 1) / actions  # chance of all actions but the greedy one
    probability = np.where(chosen == greedy, 1.0 - others, epsilon / actions)
    return chosen, np.log(probability).astype(np.float32)
