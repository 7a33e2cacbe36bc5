"""GA3C's balance of predictors, trainers and actors, found while it trains. Plain numbers only.

Babaeizadeh et al. 2017 (arXiv 1611.06256), section 4.3: the best numbers of threads depend on the
machine, the game and the network, so change one, keep it if more is trained per second. Throughput
is noisy, so here a change is compared with what it would replace until a test is sure.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

LOOKS = (4, 8, 16, 32)
"""Windows of each side after which a comparison may end; the last is the cap."""
DROP_CONFIDENCE = 0.8
"""Confidence that a proposal is not better by the least gain at which a look drops it. Low, because
most proposals are of no use and every window spent on one is lost."""
SETTLED_WINDOWS = 30
"""Windows that are averaged to notice drift."""
STALL_WINDOWS = 3
"""Windows without any trained step after which a proposal counts as stalled."""

KEPT = "kept"
DROPPED = "dropped"
UNDECIDED = "no difference"
STALLED = "dropped, no steps"


@dataclass(frozen=True, slots=True)
class Setting:
    """How many of each run.

    Attributes:
        predictors: threads that choose actions.
        trainers: threads that train.
        actors: active ones; the others wait.
    """

    predictors: int
    trainers: int
    actors: int

    def __str__(self) -> str:
        counts = {
            "predictor": self.predictors,
            "trainer": self.trainers,
            "actor": self.actors,
        }
        return ", ".join(f"{n} {what}" if n == 1 else f"{n} {what}s" for what, n in counts.items())


@dataclass(frozen=True, slots=True)
class Change:
    """A step along one of a setting's numbers.

    Attributes:
        name: the field of `Setting`.
        step: added to it.
    """

    name: str
    step: int

    def apply(self, setting: Setting, most: Setting) -> Setting:
        """The setting after the step, which ends at 1 and at `most`."""
        value = getattr(setting, self.name) + self.step
        return replace(setting, **{self.name: min(max(value, 1), getattr(most, self.name))})


@dataclass(frozen=True, slots=True)
class Throughput:
    """Trained steps/s over some windows.

    Attributes:
        mean: of the windows.
        std: their standard deviation, of the population that they sample; 0 of a single one.
        windows: how many.
    """

    mean: float
    std: float
    windows: int

    @classmethod
    def of(cls, rates: list[float]) -> Throughput:
        """Statistics of these windows; zeros if there are none."""
        mean = math.fsum(rates) / max(len(rates), 1)
        squares = math.fsum((rate - mean) ** 2 for rate in rates)
        return cls(mean, math.sqrt(squares / max(len(rates) - 1, 1)), len(rates))


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one proposal.

    Attributes:
        time_s: when, in seconds since the tuner was made.
        incumbent: the setting to beat.
        proposal: the setting that was tried.
        incumbent_rate: throughput of the incumbent, measured in turns with the proposal's.
        proposal_rate: throughput of the proposal; 0 if it stalled.
        gain: relative gain of the means.
        accepted: whether the proposal is the new incumbent.
    """

    time_s: float
    incumbent: Setting
    proposal: Setting
    incumbent_rate: Throughput
    proposal_rate: Throughput
    gain: float
    accepted: bool


def student_cdf(t: float, freedom: float) -> float:
    """Student's t distribution: the probability of at most `t`, to about 1e-9.

    With t = sqrt(freedom) tan(angle) the density is proportional to cos(angle)^(freedom - 1), and
    Simpson's rule integrates it.

    Args:
        t: may be infinite.
        freedom: degrees of freedom, at least 1, not necessarily whole.
    """
    intervals = 1_000
    end = math.atan2(abs(t), math.sqrt(freedom))
    width = end / intervals
    heights = [max(math.cos(i * width), 0.0) ** (freedom - 1.0) for i in range(intervals + 1)]
    odd, even = math.fsum(heights[1:-1:2]), math.fsum(heights[2:-1:2])
    area = (heights[0] + 4.0 * odd + 2.0 * even + heights[-1]) * width / 3.0
    log_scale = math.lgamma((freedom + 1.0) / 2.0) - math.lgamma(freedom / 2.0)
    inside = area * math.exp(log_scale) / math.sqrt(math.pi)
    return 0.5 + math.copysign(inside, t)


def confidence_above(a: Throughput, b: Throughput, factor: float = 1.0) -> float:
    """Confidence that the true mean of `a` is above `factor` times that of `b`.

    Welch's one-sided t test, for unequal variances; one minus it is the confidence of the contrary.
    Both need two windows or more.
    """
    difference = a.mean - factor * b.mean
    of_a = a.std**2 / a.windows
    of_b = (factor * b.std) ** 2 / b.windows
    if of_a + of_b == 0.0:  # no noise, no doubt
        return 0.5 if difference == 0.0 else float(difference > 0.0)
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (a.windows - 1) + of_b**2 / (b.windows - 1))
    return student_cdf(difference / math.sqrt(of_a + of_b), freedom)


class _Windows:
    """Cuts time into windows and measures trained steps/s in each.

    A window begins only once steps flow, and one without any step is an idle spell, no window.
    """

    def __init__(self, window_s: float, settle_s: float) -> None:
        self._window_s, self._settle_s = window_s, settle_s
        self._opens_s = 0.0
        self._began: tuple[float, int] | None = None
        self.discard()

    def discard(self) -> None:
        """Waits for the next trained step, as at the start."""
        self._waiting = True
        self._idle: tuple[float, int] | None = None

    def settle(self, now: float) -> None:
        """Leaves out the time in which a new setting comes into force."""
        self._opens_s = now + self._settle_s
        self._began = None

    def idle_s(self, now: float) -> float:
        """Seconds spent waiting for a step so far."""
        return now - self._idle[0] if self._waiting and self._idle is not None else 0.0

    def rate(self, now: float, steps: int) -> float | None:
        """Steps/s of the window that has just ended, if one has."""
        if self._waiting:
            if self._idle is None:
                self._idle = now, steps
            if steps == self._idle[1]:
                return None
            self._waiting = False
            self.settle(now)
        if now < self._opens_s:
            return None
        if self._began is None:
            self._began = now, steps
        began_s, before = self._began
        if now - began_s < self._window_s:
            return None
        if steps == before:
            self._waiting = True
            self._idle = now, steps
            return None
        self._began = now, steps
        return (steps - before) / (now - began_s)


class _Comparison:
    """Windows of an incumbent and of a proposal, and what the test makes of them."""

    def __init__(self, confidence: float, least_gain: float) -> None:
        doubt = (1.0 - confidence) / LOOKS[-1]
        self._levels = {
            2 * look: 1.0 - doubt * (look - before) for before, look in zip((0, *LOOKS), LOOKS)
        }
        self._least_gain = least_gain
        self._rates: tuple[list[float], list[float]] = [], []

    @property
    def windows(self) -> int:
        """How many there are, of both."""
        return sum(map(len, self._rates))

    @property
    def proposals_turn(self) -> bool:
        """Whether the next window is the proposal's: in turns A B B A, where A is the incumbent."""
        return self.windows % 4 in (1, 2)

    def add(self, rate: float) -> None:
        """Takes the window of whose turn it is."""
        old, new = self._rates
        (new if self.proposals_turn else old).append(rate)

    def throughputs(self) -> tuple[Throughput, Throughput]:
        """Of the incumbent and of the proposal."""
        old, new = self._rates
        return Throughput.of(old), Throughput.of(new)

    def verdict(self) -> str | None:
        """Kept, dropped or no difference; None while that is open."""
        level = self._levels.get(self.windows)
        if level is None:
            return None
        old, new = self.throughputs()
        enough = 1.0 + self._least_gain
        if new.mean >= enough * old.mean and confidence_above(new, old) >= level:
            return KEPT
        if 1.0 - confidence_above(new, old, enough) >= DROP_CONFIDENCE:
            return DROPPED
        return UNDECIDED if self.windows == 2 * LOOKS[-1] else None


class Tuner:
    """Climbs to the setting that trains most steps per second, and stays while that is so.

    It proposes one step along one of the three numbers, and runs incumbent and proposal in turns
    (A B B A: a steady drift of the machine cancels out), each with windows of its own: what is
    compared was measured at the same time, and nothing is compared with a rejected setting.

    The test is sequential: Welch's one-sided t test after 4, 8, 16 and 32 windows of each side. A
    proposal is kept if it measures better by `least_gain` and is better (by anything) at
    `confidence`: the doubt 1 - confidence is shared out over the looks in proportion to their new
    windows, so that by Bonferroni all looks together keep a useless proposal no more often than
    that. It is dropped once it is not better by `least_gain` at `DROP_CONFIDENCE`, or if nothing is
    decided after the last look.

    After an acceptance the same step comes first. When every neighbour of the incumbent was
    rejected, the tuner is settled. Then it compares each 30 windows with the first 30 since; once
    their mean differs by more than `drift` at `confidence`, the search goes on from the incumbent.

    Args:
        start: the first incumbent.
        most: upper bounds; the lower are 1. Actors change by an eighth of theirs, then by half of
            that, at least 1; the others by 1.
        window_s: length of a window in seconds, in which many batches should be trained: a window
            without any counts as idle.
        settle_s: seconds left out after each change and each idle spell.
        confidence: of a decision, between 0.5 and 1.
        least_gain: the smallest relative gain that matters.
        drift: the relative change of throughput that re-opens the search.
        clock: monotonic seconds; replaced in tests.

    Attributes:
        settled: whether the search is over, for the time being.
        said: what was last tried or decided, in fewer than 60 characters.
        history: all decisions so far.

    Raises:
        ValueError: for a start outside of 1 to `most`, and for other settings out of bounds.
    """

    def __init__(
        self,
        start: Setting,
        most: Setting,
        *,
        window_s: float = 2.0,
        settle_s: float = 1.0,
        confidence: float = 0.95,
        least_gain: float = 0.02,
        drift: float = 0.10,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name in ("predictors", "trainers", "actors"):
            low, high = getattr(start, name), getattr(most, name)
            _check(f"start: {name}", low, 1 <= low <= high, f"1 to {high}")
        _check("window_s", window_s, 0.0 < window_s < math.inf, "more than 0")
        _check("settle_s", settle_s, 0.0 <= settle_s < math.inf, "0 or more")
        _check("confidence", confidence, 0.5 < confidence < 1.0, "between 0.5 and 1")
        _check("least_gain", least_gain, 0.0 <= least_gain < math.inf, "0 or more")
        _check("drift", drift, 0.0 < drift < 1.0, "between 0 and 1")
        self._most = most
        self._confidence, self._least_gain, self._drift = confidence, least_gain, drift
        self._clock, self._made_s = clock, clock()
        self._windows = _Windows(window_s, settle_s)
        self._stall_s = STALL_WINDOWS * window_s
        self._recent: list[float] = []
        self._incumbent = self._setting = start
        self.settled = False
        self.said = "measuring the first setting"
        self.history: list[Decision] = []
        self._search()

    @property
    def setting(self) -> Setting:
        """What should run at present: the incumbent or the proposal."""
        return self._setting

    def discard(self) -> None:
        """Begins the present window anew, with the next trained step; those ended stay.

        For what is no throughput of the setting: a save, an evaluation, a stop. Call it when that
        is over, or all the while: after 3 windows without a step a proposal is blamed for it.
        """
        self._windows.discard()

    def update(self, steps: int) -> bool:
        """Notes progress; call it at every poll.

        Args:
            steps: trained so far, in all; never fewer than before.

        Returns:
            Whether `setting` has changed.
        """
        now, before = self._clock(), self._setting
        rate = self._windows.rate(now, steps)
        if rate is None:
            if before != self._incumbent and self._windows.idle_s(now) >= self._stall_s:
                self._stall(now)
        elif self.settled:
            self._watch(rate)
        else:
            self._compare(rate, now)
        if self._setting == before:
            return False
        self._windows.settle(now)
        return True

    def _search(self, first: Change | None = None, beaten: Setting | None = None) -> None:
        """Tries all neighbours of the incumbent but the one that it has just beaten."""
        coarse = max(self._most.actors // 8, 1)
        fine = max(coarse // 2, 1)
        changes = [
            Change("predictors", 1),
            Change("trainers", 1),
            Change("actors", -coarse),
            Change("predictors", -1),
            Change("trainers", -1),
            Change("actors", coarse),
            Change("actors", -fine),
            Change("actors", fine),
        ]
        if first is not None:
            changes.insert(0, first)
        self._untried: dict[Setting, Change] = {}
        for change in changes:
            neighbour = change.apply(self._incumbent, self._most)
            if neighbour not in (self._incumbent, beaten):
                self._untried.setdefault(neighbour, change)
        self._next()

    def _next(self) -> None:
        """Goes on to the next proposal, or settles where none is left."""
        self.settled = not self._untried
        if self.settled:
            self._setting = self._incumbent
            self.said = f"settled: {self._incumbent}"
            self._reference: Throughput | None = None
            return
        self._proposal = next(iter(self._untried))
        self._change = self._untried.pop(self._proposal)
        self._stalled = False
        self._begin()

    def _begin(self) -> None:
        """Begins to compare the proposal with the incumbent."""
        self._setting = self._incumbent
        self._comparison = _Comparison(self._confidence, self._least_gain)

    def _compare(self, rate: float, now: float) -> None:
        comparison = self._comparison
        comparison.add(rate)
        verdict = comparison.verdict()
        if verdict is not None:
            self._decide(verdict, *comparison.throughputs(), now)
            return
        self._setting = self._proposal if comparison.proposals_turn else self._incumbent
        count = comparison.windows
        if count > 1 or not self.history:  # until then the last decision can be read
            self.said = f"trying {self._step()} ({count} window{'s' * (count > 1)})"

    def _stall(self, now: float) -> None:
        """Begins anew with a proposal that trains nothing, for that may be an idle spell; once."""
        if not self._stalled:
            self._stalled = True
            self._begin()
            return
        incumbent, _ = self._comparison.throughputs()
        self._decide(STALLED, incumbent, Throughput(0.0, 0.0, 0), now)

    def _decide(self, verdict: str, old: Throughput, new: Throughput, now: float) -> None:
        gain = new.mean / old.mean - 1.0
        accepted = verdict == KEPT
        self.said = f"{self._step()}: {gain:+.0%} {verdict}"
        self.history.append(
            Decision(
                time_s=now - self._made_s,
                incumbent=self._incumbent,
                proposal=self._proposal,
                incumbent_rate=old,
                proposal_rate=new,
                gain=gain,
                accepted=accepted,
            )
        )
        if accepted:
            beaten, self._incumbent = self._incumbent, self._proposal
            self._search(self._change, beaten)
        else:
            self._next()

    def _step(self) -> str:
        """The change that is being tried, in words."""
        name = self._change.name
        return f"{name} {getattr(self._incumbent, name)}->{getattr(self._proposal, name)}"

    def _watch(self, rate: float) -> None:
        """Re-opens the search once throughput is no longer what it was."""
        self._recent.append(rate)
        if len(self._recent) < SETTLED_WINDOWS:
            return
        recent, self._recent = Throughput.of(self._recent), []
        if self._reference is None:
            self._reference = recent
            return
        reference = self._reference
        risen = confidence_above(recent, reference, 1.0 + self._drift)
        fallen = 1.0 - confidence_above(recent, reference, 1.0 - self._drift)
        if max(risen, fallen) >= self._confidence:
            self.said = f"reopened: {reference.mean:.0f} -> {recent.mean:.0f} steps/s"
            self._search()


def _check(name: str, value: float, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name} is {value}, allowed: {allowed}; change it")
