"""The tuner in simulated worlds: what it measures, decides and says, and where it gets to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import product

import numpy as np
import pytest

from drl_mpi.acting.tuner import (
    DROP_CONFIDENCE,
    LOOKS,
    SETTLED_WINDOWS,
    Setting,
    Throughput,
    Tuner,
    confidence_above,
    student_cdf,
)

Rate = Callable[[Setting, float], float]
"""(setting, seconds) -> true trained steps/s."""

POLL_S = 0.25
LAG_S = 0.3
"""Time constant with which throughput follows a change."""


class World:
    """A virtual clock, and a learner whose throughput depends on the tuner's setting.

    Args:
        rate: the truth.
        noise: relative standard deviation of a 2 s window.
        lag_s: time constant with which the rate follows a change of setting; 0: at once.
    """

    def __init__(
        self,
        rate: Rate,
        most: Setting,
        start: Setting | None = None,
        noise: float = 0.0,
        seed: int = 0,
        lag_s: float = 0.0,
        confidence: float = 0.95,
    ) -> None:
        self.now = 0.0
        self.steps = 0.0
        self.said: list[str] = []
        self.settings: list[Setting] = []
        self._rate = rate
        self._noise = noise * math.sqrt(2.0 / POLL_S)
        self._rng = np.random.default_rng(seed)
        self._follow = 1.0 - math.exp(-POLL_S / lag_s) if lag_s else 1.0
        self.tuner = Tuner(
            start or Setting(1, 1, most.actors),
            most,
            clock=lambda: self.now,
            confidence=confidence,
        )
        self._present = rate(self.tuner.setting, 0.0)

    def poll(self, idle: bool = False) -> None:
        """A quarter of a second, and a look at the tuner."""
        before = self.tuner.setting
        self.now += POLL_S
        self._present += self._follow * (self._rate(before, self.now) - self._present)
        if not idle:
            luck = max(1.0 + self._noise * self._rng.standard_normal(), 0.0)
            self.steps += POLL_S * self._present * luck
        changed = self.tuner.update(round(self.steps))
        assert changed == (self.tuner.setting != before)
        self.settings.append(self.tuner.setting)
        if not self.said or self.said[-1] != self.tuner.said:
            self.said.append(self.tuner.said)

    def run(self, seconds: float, idle: bool = False) -> None:
        for _ in range(round(seconds / POLL_S)):
            self.poll(idle)

    def run_until(self, done: Callable[[], bool], limit_s: float = 3_600.0) -> None:
        end = self.now + limit_s
        while not done():
            assert self.now < end
            self.poll()

    def settle(self, limit_s: float = 3_600.0) -> Setting:
        self.run_until(lambda: self.tuner.settled, limit_s)
        return self.tuner.setting


def numbers(setting: Setting) -> tuple[int, int, int]:
    return setting.predictors, setting.trainers, setting.actors


def grid(most: Setting) -> Iterable[Setting]:
    return (Setting(*point) for point in product(*(range(1, n + 1) for n in numbers(most))))


def hill(top: Setting) -> Rate:
    """1000 steps/s at the top, a tenth less per step away from it."""

    def rate(setting: Setting, now: float) -> float:  # noqa: ARG001
        away = (
            abs(setting.predictors - top.predictors)
            + abs(setting.trainers - top.trainers)
            + abs(setting.actors - top.actors)
        )
        return 1000.0 * 0.9**away

    return rate


def flat(setting: Setting, now: float) -> float:  # noqa: ARG001
    return 800.0


# The test of two throughputs


@pytest.mark.parametrize(
    ("freedom", "probability", "t"),
    [
        (1, 0.95, 6.3138), (1, 0.975, 12.7062), (2, 0.95, 2.9200), (2, 0.995, 9.9248),
        (3, 0.99, 4.5407), (4, 0.95, 2.1318), (5, 0.975, 2.5706), (6, 0.99, 3.1427),
        (10, 0.95, 1.8125), (14, 0.995, 2.9768), (30, 0.975, 2.0423), (60, 0.95, 1.6706),
        (120, 0.99, 2.3578), (100_000, 0.975, 1.9600),
    ],
)  # fmt: skip
def test_students_distribution_is_the_tabulated_one(
    freedom: float, probability: float, t: float
) -> None:
    assert student_cdf(t, freedom) == pytest.approx(probability, abs=2e-5)
    assert student_cdf(-t, freedom) == pytest.approx(1.0 - probability, abs=2e-5)


@pytest.mark.parametrize("t", [-40.0, -1.0, -1e-3, 0.0, 0.3, 2.0, 7.0, 1e3])
def test_students_distribution_in_closed_form(t: float) -> None:
    assert student_cdf(t, 1.0) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-9)
    assert student_cdf(t, 2.0) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-9)
    at_4 = 0.5 + 0.375 * (x := t / math.sqrt(1 + t * t / 4)) * (1 - x * x / 12)
    assert student_cdf(t, 4.0) == pytest.approx(at_4, abs=1e-9)
    assert student_cdf(t, 1.0) <= student_cdf(t + 0.1, 1.0)


def test_students_distribution_has_both_ends() -> None:
    for freedom in (1.0, 2.7, 62.0):
        assert student_cdf(math.inf, freedom) == pytest.approx(1.0, abs=1e-6)
        assert student_cdf(-math.inf, freedom) == pytest.approx(0.0, abs=1e-6)


def test_statistics_of_windows() -> None:
    rates = [3.0, 5.0, 4.0, 8.0]
    throughput = Throughput.of(rates)
    assert throughput == Throughput(pytest.approx(5.0), pytest.approx(np.std(rates, ddof=1)), 4)
    assert Throughput.of([7.0]) == Throughput(7.0, 0.0, 1)
    assert Throughput.of([]) == Throughput(0.0, 0.0, 0)


def test_welchs_test_with_equal_sides_is_the_plain_one() -> None:
    b = Throughput(100.0, 10.0, 8)
    for quantile, probability in ((1.7613, 0.95), (2.9768, 0.995)):  # tabulated for 14
        a = Throughput(100.0 + quantile * 10.0 * math.sqrt(2 / 8), 10.0, 8)
        assert confidence_above(a, b) == pytest.approx(probability, abs=2e-5)
        assert confidence_above(b, a) == pytest.approx(1.0 - probability, abs=2e-5)


def test_welchs_test_with_unequal_sides() -> None:
    """Standard error 5 and, after Welch, 625 / (256 / 4 + 81 / 19) = 9.16 degrees of freedom."""
    a, b = Throughput(60.0, 4.0 * math.sqrt(5), 5), Throughput(25.0, 3.0 / 2 * math.sqrt(20), 20)
    freedom = 625 / (256 / 4 + 81 / 19)
    assert confidence_above(a, b, 2.0) == pytest.approx(student_cdf(10.0 / 5.0, freedom))


def test_without_noise_there_is_no_doubt() -> None:
    a, b = Throughput(2.0, 0.0, 4), Throughput(1.0, 0.0, 4)
    assert [confidence_above(a, b, factor) for factor in (1.9, 2.0, 2.1)] == [1.0, 0.5, 0.0]


# The search


def test_it_climbs_one_number_at_a_time_and_settles_on_top() -> None:
    most, top = Setting(4, 3, 6), Setting(3, 2, 4)
    world = World(hill(top), most)
    assert world.tuner.setting == Setting(1, 1, 6)
    assert not world.tuner.settled
    assert world.settle() == top
    incumbent = Setting(1, 1, 6)
    for decision in world.tuner.history:
        assert decision.incumbent == incumbent
        pairs = zip(numbers(decision.incumbent), numbers(decision.proposal))
        assert sorted(abs(new - old) for old, new in pairs) == [0, 0, 1]
        assert decision.accepted == (decision.gain > 0)
        assert decision.gain == pytest.approx(1 / 0.9 - 1 if decision.accepted else -0.1, abs=2e-3)
        incumbent = decision.proposal if decision.accepted else incumbent
    assert {setting.actors for setting in world.settings} == {3, 4, 5, 6}
    times = [decision.time_s for decision in world.tuner.history]
    assert times == sorted(times)


def test_it_settles_only_after_all_neighbours_of_the_incumbent() -> None:
    top = Setting(2, 2, 3)
    world = World(hill(top), Setting(3, 3, 4), start=top)
    world.settle()
    tried = {decision.proposal for decision in world.tuner.history}
    assert tried == {
        setting for setting in grid(Setting(3, 3, 4))
        if sum(abs(a - b) for a, b in zip(numbers(setting), numbers(top))) == 1
    }  # fmt: skip
    assert len(world.tuner.history) == 6


def test_after_an_acceptance_the_same_step_comes_first_and_the_beaten_setting_not_at_all() -> None:
    world = World(hill(Setting(1, 3, 2)), Setting(2, 4, 2))
    world.settle()
    tried = [(*numbers(decision.proposal), decision.accepted) for decision in world.tuner.history]
    assert tried == [
        (2, 1, 2, False), (1, 2, 2, True), (1, 3, 2, True), (1, 4, 2, False), (2, 3, 2, False),
        (1, 3, 1, False),
    ]  # fmt: skip


def test_many_actors_change_in_proportion_and_then_more_finely() -> None:
    def rate(setting: Setting, now: float) -> float:  # noqa: ARG001
        return 1000.0 - 5.0 * abs(setting.actors - 38)

    world = World(rate, Setting(1, 1, 64))
    assert world.settle() == Setting(1, 1, 40)
    assert [decision.proposal.actors for decision in world.tuner.history] == [
        56, 48, 40, 32, 36, 44
    ]  # fmt: skip
    low = World(lambda setting, _: 1000.0 / setting.actors, Setting(1, 1, 64), Setting(1, 1, 7))
    assert low.settle() == Setting(1, 1, 1)
    assert low.tuner.history[0].proposal.actors == 1  # an eighth is 8: it ends at the bound


def test_incumbent_and_proposal_take_turns_without_the_time_of_changing() -> None:
    """For 0.75 s after every change nothing is trained: no window may show that."""
    changes = [-10.0]

    def rate(setting: Setting, now: float) -> float:
        if now - changes[-1] <= 0.75:
            return 0.0
        return 1000.0 * setting.predictors

    world = World(rate, Setting(2, 1, 1))
    order = [world.tuner.setting.predictors]
    while not world.tuner.history:
        world.poll()
        if world.tuner.setting.predictors != order[-1]:
            changes.append(world.now)
            order.append(world.tuner.setting.predictors)
    (decision,) = world.tuner.history
    assert decision.incumbent_rate == Throughput(1000.0, 0.0, 4)
    assert decision.proposal_rate == Throughput(2000.0, 0.0, 4)
    assert decision.accepted
    assert order == [1, 2, 1, 2, 1, 2]  # A, B B, A A, B B, A, and the winner
    lengths = np.diff(changes[1:])
    np.testing.assert_allclose(lengths, [5.0, 5.0, 5.0, 3.0])  # 1 s to settle, and the windows


def test_a_steady_drift_of_the_machine_favours_nobody() -> None:
    for slope in (-0.002, 0.002):
        world = World(lambda _, now, slope=slope: 800.0 * (1 + slope * now), Setting(2, 2, 2))
        world.settle()
        assert len(world.tuner.history) == 3
        for decision in world.tuner.history:
            assert not decision.accepted
            assert abs(decision.gain) < 0.004


def test_the_incumbent_is_measured_again_for_each_proposal() -> None:
    """The machine loses half its speed after the first decision; what follows is measured then."""
    world = World(flat, Setting(2, 2, 2))
    truth = hill(Setting(1, 2, 2))
    slow: list[bool] = []
    world._rate = lambda setting, now: truth(setting, now) / (2 if slow else 1)
    world.run_until(lambda: len(world.tuner.history) == 1)
    slow.append(True)
    world.run_until(lambda: len(world.tuner.history) == 2)
    first, second = world.tuner.history
    assert not first.accepted
    assert first.incumbent_rate.mean == pytest.approx(900.0, rel=0.01)
    assert second.incumbent_rate.mean == pytest.approx(450.0, rel=0.01)
    assert second.proposal_rate.mean == pytest.approx(500.0, rel=0.01)
    assert second.accepted


def test_there_may_be_nothing_to_tune() -> None:
    world = World(flat, Setting(1, 1, 1))
    assert world.tuner.settled
    assert world.tuner.said == "settled: 1 predictor, 1 trainer, 1 actor"
    world.run(300.0)
    assert world.tuner.settled
    assert world.tuner.history == []


# The statistics of decisions


def test_a_useless_change_is_kept_no_more_often_than_the_confidence_says() -> None:
    """Decisions under noise of 8 %: of proposals without effect some 4 % are kept at 0.95."""

    def kept(confidence: float, seeds: range) -> float:
        decisions = []
        for seed in seeds:
            world = World(flat, Setting(2, 2, 2), noise=0.08, seed=seed, confidence=confidence)
            world.run_until(lambda tuner=world.tuner: bool(tuner.history))
            decisions += world.tuner.history
        return float(np.mean([decision.accepted for decision in decisions]))

    assert 0.01 < kept(0.95, range(400)) < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)
    assert 0.08 < kept(0.8, range(200)) < 0.2


@pytest.mark.parametrize(("gain", "often"), [(0.05, 0.9), (0.1, 0.97), (0.3, 1.0)])
def test_a_useful_change_is_found(gain: float, often: float) -> None:
    def rate(setting: Setting, now: float) -> float:  # noqa: ARG001
        return 800.0 * (1.0 + gain * (setting.predictors - 1))

    decisions = []
    for seed in range(100):
        world = World(rate, Setting(2, 1, 1), noise=0.05, seed=seed)
        world.settle()
        decisions.append(world.tuner.history[0])
    assert np.mean([decision.accepted for decision in decisions]) >= often


def test_what_is_clear_takes_one_look_and_what_is_not_ends_at_the_cap() -> None:
    def windows(gain: float) -> set[int]:
        def rate(setting: Setting, now: float) -> float:  # noqa: ARG001
            return 800.0 * (1.0 + gain * (setting.predictors - 1))

        counts = set()
        for seed in range(40):
            world = World(rate, Setting(2, 1, 1), noise=0.07, seed=seed)
            world.settle(limit_s=2 * LOOKS[-1] * 3.0 + 10.0)
            counts.add(world.tuner.history[0].proposal_rate.windows)
        return counts

    assert windows(1.0) == windows(-0.6) == {LOOKS[0]}
    assert windows(0.04) == set(LOOKS)


def test_a_gain_below_the_least_is_not_kept_however_sure_it_is() -> None:
    for gain, kept in ((0.01, False), (0.03, True)):
        world = World(
            lambda setting, _, gain=gain: 1e6 * (1 + gain * (setting.trainers - 1)),
            Setting(1, 2, 1),
        )
        world.settle()
        assert [decision.accepted for decision in world.tuner.history] == [kept]


# The goal: within 10 % of the best in 10 minutes


def surface(seed: int, most: Setting) -> Rate:
    """Throughput of three stages in a row, on cores that all threads share.

    The stages' capacities grow with their numbers, in proportion for actors and less for threads.
    The slowest one decides, sharply in every other surface and with a round knee in the rest.
    Beyond the number of cores everything slows down.
    """
    rng = np.random.default_rng(seed)
    sharpness = math.inf if seed % 2 else rng.uniform(4.0, 12.0)
    cores = rng.uniform(3.0, 16.0)
    per_actor = rng.uniform(100.0, 400.0)
    per_predictor, per_trainer = rng.uniform(150.0, 1200.0, 2)
    predictors_scale, trainers_scale = rng.uniform(0.2, 0.9, 2)
    load = rng.uniform((0.4, 0.4, 0.3), (1.2, 1.2, 1.0))

    def rate(setting: Setting, now: float) -> float:  # noqa: ARG001
        stages = np.array([
            per_actor * setting.actors,
            per_predictor * setting.predictors**predictors_scale,
            per_trainer * setting.trainers**trainers_scale,
        ])  # fmt: skip
        slowest = stages.min()
        round_knee = ((stages / slowest) ** -sharpness).sum() ** (-1.0 / sharpness)
        busy = load @ np.array(numbers(setting))
        return float(slowest * round_knee * min(1.0, cores / busy))

    assert most.actors <= 4  # the loads are meant for so many
    return rate


def best_of(rate: Rate, most: Setting) -> float:
    return max(rate(setting, 0.0) for setting in grid(most))


def has_a_way_up(rate: Rate, most: Setting) -> bool:
    """Whether steps of at least 5 %, one number at a time, lead to within 10 % of the best.

    Not where two stages are about equally slow and the knee is sharp: no single change helps.
    """
    setting = Setting(1, 1, most.actors)
    while True:
        neighbours = [
            other for other in grid(most)
            if sum(abs(a - b) for a, b in zip(numbers(setting), numbers(other))) == 1
        ]  # fmt: skip
        better = max(neighbours, key=lambda other: rate(other, 0.0))
        if rate(better, 0.0) < 1.05 * rate(setting, 0.0):
            return rate(setting, 0.0) >= 0.9 * best_of(rate, most)
        setting = better


def test_it_comes_within_10_percent_of_the_best_in_10_minutes() -> None:
    """At noise of 5 to 10 % per window."""
    most = Setting(3, 3, 4)
    near, climbable, times = [], [], []
    for seed in range(200):
        rate = surface(seed, most)
        noise = np.random.default_rng(seed + 1_000).uniform(0.05, 0.10)
        world = World(rate, most, noise=noise, seed=seed, lag_s=LAG_S)
        world.run(3.0, idle=True)
        world.run_until(lambda: world.tuner.settled or world.now >= 600.0)  # noqa: B023
        accepted = [entry.proposal for entry in world.tuner.history if entry.accepted]
        incumbent = accepted[-1] if accepted else Setting(1, 1, most.actors)
        near.append(rate(incumbent, 0.0) >= 0.9 * best_of(rate, most))
        climbable.append(has_a_way_up(rate, most))
        world.settle(limit_s=1_800.0)
        times.append(world.now)
    assert np.mean(climbable) > 0.85
    assert np.mean(np.array(near)[climbable]) >= 0.95
    assert np.mean(near) >= 0.9
    assert np.median(times) < 330.0
    assert np.mean(np.array(times) < 600.0) >= 0.85


# Idle spells


def test_nothing_is_measured_before_the_first_trained_step() -> None:
    world = World(hill(Setting(2, 1, 1)), Setting(2, 1, 1))
    world.run(100.1, idle=True)
    assert world.settings == [Setting(1, 1, 1)] * len(world.settings)
    assert world.tuner.said == "measuring the first setting"
    world.settle()
    (decision,) = world.tuner.history
    assert decision.incumbent_rate.mean == pytest.approx(900.0, rel=1e-3)
    assert decision.incumbent_rate.std < 1.0


@pytest.mark.parametrize("at_s", np.arange(2.0, 23.0, 1.25).tolist())
@pytest.mark.parametrize(("spell_s", "calls"), [(2.5, 1), (2.5, 100), (30.0, 200)])
def test_an_announced_idle_spell_is_not_measured(at_s: float, spell_s: float, calls: int) -> None:
    """Whenever it comes: during a proposal, an incumbent, a change."""
    world = World(hill(Setting(2, 1, 1)), Setting(2, 1, 1))
    world.run(at_s)
    for poll in range(round(spell_s / POLL_S)):
        if poll < calls:
            world.tuner.discard()
        world.poll(idle=True)
    world.settle()
    (decision,) = world.tuner.history
    assert decision.accepted
    assert decision.incumbent_rate.mean == pytest.approx(900.0, rel=2e-3)
    assert decision.proposal_rate.mean == pytest.approx(1000.0, rel=2e-3)
    assert decision.incumbent_rate.windows == decision.proposal_rate.windows == LOOKS[0]


def test_a_discarded_window_begins_anew_and_those_before_it_stay() -> None:
    world = World(flat, Setting(2, 1, 1))
    world.run_until(lambda: "(5 windows)" in world.tuner.said)
    world.run(1.75)
    world.tuner.discard()
    world.run(3.0)  # a quarter until the next step, 1 s to settle, less than a window
    assert "(5 windows)" in world.tuner.said
    world.run(0.5)
    assert "(6 windows)" in world.tuner.said


@pytest.mark.parametrize("at_s", [2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0])
def test_a_long_idle_spell_that_nobody_announced_decides_nothing(at_s: float) -> None:
    world = World(hill(Setting(2, 1, 1)), Setting(2, 1, 1))
    world.run(at_s)
    world.run(60.0, idle=True)
    assert world.tuner.history == []
    world.settle()
    assert world.tuner.setting == Setting(2, 1, 1)


def test_a_proposal_that_stalls_is_dropped() -> None:
    world = World(lambda setting, _: 1000.0 * (setting.actors == 2), Setting(1, 1, 2))
    world.settle(limit_s=60.0)
    (decision,) = world.tuner.history
    assert (decision.accepted, decision.gain) == (False, -1.0)
    assert decision.proposal_rate == Throughput(0.0, 0.0, 0)
    assert decision.incumbent_rate.mean == pytest.approx(1000.0)
    assert world.tuner.setting == Setting(1, 1, 2)


# After settling


def settled_world(noise: float, seed: int = 0) -> tuple[World, list[float]]:
    """A settled world with its reference taken, and its speed to be changed."""
    speed = [1.0]
    top = hill(Setting(1, 1, 2))
    world = World(
        lambda setting, now: speed[0] * top(setting, now), Setting(1, 1, 2), noise=noise, seed=seed
    )
    world.settle()
    world.run(2.0 * SETTLED_WINDOWS)
    return world, speed


@pytest.mark.parametrize("factor", [0.75, 1.3])
def test_a_lasting_change_of_throughput_reopens_the_search(factor: float) -> None:
    for seed in range(5):
        world, speed = settled_world(noise=0.08, seed=seed)
        speed[0] = factor
        tried = len(world.tuner.history)
        world.run_until(lambda: not world.tuner.settled, limit_s=4.2 * SETTLED_WINDOWS)  # noqa: B023
        assert world.tuner.said.startswith("reopened: ")
        world.settle()
        assert len(world.tuner.history) > tried
        world.run(2.0 * SETTLED_WINDOWS)
        world.run(1_200.0)
        assert world.tuner.settled  # the new level is the reference now


def test_a_search_that_was_reopened_finds_the_new_best() -> None:
    top = [Setting(1, 1, 3)]
    world = World(lambda setting, now: hill(top[0])(setting, now), Setting(3, 3, 3), noise=0.05)
    assert world.settle() == top[0]
    world.run(90.0)
    top[0] = Setting(3, 2, 3)
    world.run_until(lambda: not world.tuner.settled)
    assert world.settle() == top[0]


@pytest.mark.parametrize("factor", [0.95, 1.0, 1.05])
def test_small_changes_and_noise_do_not_reopen_it(factor: float) -> None:
    for seed in range(4):
        world, speed = settled_world(noise=0.08, seed=seed)
        speed[0] = factor
        tried = len(world.tuner.history)
        world.run(3_600.0)
        assert world.tuner.settled
        assert len(world.tuner.history) == tried


@pytest.mark.parametrize("factor", [0.01, 10.0])
def test_a_single_window_does_not_reopen_it(factor: float) -> None:
    world, speed = settled_world(noise=0.02)
    for _ in range(10):
        speed[0] = factor
        world.run(2.0)
        speed[0] = 1.0
        world.run(2.0 * SETTLED_WINDOWS)
        assert world.tuner.settled


# Words and refusals


def test_what_it_says() -> None:
    world = World(hill(Setting(2, 1, 2)), Setting(2, 1, 2))
    world.settle()
    assert world.said[0] == "measuring the first setting"
    assert world.said[1] == "trying predictors 1->2 (1 window)", "from the first trained steps on"
    assert world.said[2:5] == [f"trying predictors 1->2 ({n} windows)" for n in (2, 3, 4)]
    assert world.said[8] == "predictors 1->2: +11% kept"
    assert world.said[9] == "trying actors 2->1 (2 windows)"
    assert world.said[-1] == "settled: 2 predictors, 1 trainer, 2 actors"


@pytest.mark.parametrize(
    ("rate", "noise", "said"),
    [
        (lambda setting, _: 1000.0 / setting.trainers, 0.0, "-50% dropped"),
        (lambda setting, _: 1000.0 * (setting.trainers < 2), 0.0, "-100% dropped, no steps"),
        (lambda setting, _: 1000.0 * (1.0 + 0.01 * setting.trainers), 0.2, "+5% no difference"),
    ],
)
def test_how_it_words_a_rejection(rate: Rate, noise: float, said: str) -> None:
    world = World(rate, Setting(1, 2, 2), noise=noise, seed=5)
    world.settle()
    assert f"trainers 1->2: {said}" in world.said


def test_all_it_says_is_short() -> None:
    most = Setting(100, 100, 9_999)
    world = World(flat, most, start=Setting(99, 99, 9_000), noise=0.1)
    world.settle()
    world.run(2.0 * SETTLED_WINDOWS)
    world._rate = lambda *_: 123_456_789.0
    world.run_until(lambda: not world.tuner.settled)
    assert world.said[-1].startswith("reopened: ")
    assert max(map(len, world.said)) < 60


def test_refusals() -> None:
    most = Setting(2, 3, 4)
    bad = {
        "predictors": [Setting(0, 1, 1), Setting(3, 1, 1)],
        "trainers": [Setting(1, 0, 1), Setting(1, 4, 1)],
        "actors": [Setting(1, 1, 0), Setting(1, 1, 5)],
    }
    for name, settings in bad.items():
        for start in settings:
            with pytest.raises(ValueError, match=f"start: {name} is [0-9], allowed: 1 to [234]"):
                Tuner(start, most)
    values = {
        "window_s": [0.0, math.inf, math.nan], "settle_s": [-1.0, math.nan],
        "confidence": [0.5, 1.0], "least_gain": [-0.1, math.nan], "drift": [0.0, 1.0],
    }  # fmt: skip
    for name, wrong in values.items():
        for value in wrong:
            with pytest.raises(ValueError, match=f"{name} is {value}, allowed"):
                Tuner(Setting(1, 1, 1), most, **{name: value})
    assert 0.5 < DROP_CONFIDENCE < 1.0
