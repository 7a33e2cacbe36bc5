"""The filter of outliers: what it drops, what it learns from, and how it finds back."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from drl_mpi.updating.outliers import OutlierFilter


def ordinary(count: int, seed: int = 0, level: float = 1.0) -> list[tuple[float, float]]:
    """Losses of both signs around `level`, norms around 10 times that; uniform, so no tails."""
    rng = np.random.default_rng(seed)
    sizes = rng.uniform(0.8, 1.2, (count, 2)) * (level, 10.0 * level)
    signs = rng.choice((-1.0, 1.0), count)
    return [(float(sign * loss), float(norm)) for sign, (loss, norm) in zip(signs, sizes)]


def feed(
    judge: OutlierFilter, pairs: list[tuple[float, float]]
) -> tuple[OutlierFilter, list[bool]]:
    return judge, [judge.accept(*pair) for pair in pairs]


def learned(judge: OutlierFilter) -> dict[str, float]:
    return {key: value for key, value in judge.state().items() if key not in ("seen", "dropped")}


def test_the_statistics_are_those_of_absolute_losses_and_norms() -> None:
    pairs = ordinary(40)
    judge, verdicts = feed(OutlierFilter(3.0, warmup=40, decay=0.99), pairs)
    assert all(verdicts)
    sizes = np.abs(pairs)
    state = judge.state()
    for i, name in enumerate(("loss", "norm")):
        assert state[f"{name}_mean"] == pytest.approx(sizes[:, i].mean())
        assert state[f"{name}_variance"] == pytest.approx(sizes[:, i].var())


def test_later_the_averages_are_exponential() -> None:
    pairs = ordinary(200)
    judge, _ = feed(OutlierFilter(0.0, warmup=2, decay=0.9), pairs)
    first = np.abs(pairs[:10])
    mean, variance = first.mean(axis=0), first.var(axis=0)
    for size in np.abs(pairs[10:]):
        variance = 0.9 * (variance + 0.1 * (size - mean) ** 2)
        mean = 0.9 * mean + 0.1 * size
    state = judge.state()
    np.testing.assert_allclose([state["loss_mean"], state["norm_mean"]], mean)
    np.testing.assert_allclose([state["loss_variance"], state["norm_variance"]], variance)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_limit_is_mean_plus_k_deviations(which: int, sign: float) -> None:
    pairs = ordinary(100)
    sizes = np.abs(pairs)
    limit = sizes[:, which].mean() + 2.5 * sizes[:, which].std()
    for factor, verdict in ((0.999, True), (1.001, False)):
        judge, _ = feed(OutlierFilter(2.5, warmup=100), pairs)
        pair = [1.0, 10.0]
        pair[which] = limit * factor * (sign if which == 0 else 1.0)
        assert judge.accept(*pair) is verdict
        assert (judge.seen, judge.dropped) == (101, int(not verdict))
        assert judge.accept(0.0, 0.0)  # small ones are never outliers


def test_nothing_is_an_outlier_before_the_warmup_ends() -> None:
    _, verdicts = feed(OutlierFilter(3.0, warmup=20), [*ordinary(19), (1e3, 10.0)])
    assert all(verdicts)
    _, verdicts = feed(OutlierFilter(3.0, warmup=20), [*ordinary(20), (1e3, 10.0)])
    assert verdicts == [True] * 20 + [False]


@pytest.mark.parametrize("threshold", [0.0, 3.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])  # 1e39: not in float32
def test_what_is_not_finite_never_passes_and_teaches_nothing(threshold: float, bad: float) -> None:
    judge = OutlierFilter(threshold, warmup=5, patience=3)
    for pairs in ([], ordinary(10)):  # before and after the warm-up
        feed(judge, pairs)
        before = learned(judge)
        _, verdicts = feed(judge, [(bad, 10.0), (1.0, bad), (bad, bad)] * 10)
        assert not any(verdicts)
        assert learned(judge) == before
    assert (judge.seen, judge.dropped) == (70, 60)


def test_threshold_0_lets_everything_finite_pass() -> None:
    _, verdicts = feed(OutlierFilter(0.0, warmup=2), [*ordinary(50), (1e30, 1e30), (1.0, 1e9)])
    assert all(verdicts)


def test_outliers_do_not_poison_the_statistics() -> None:
    clean, _ = feed(OutlierFilter(3.0, warmup=50), ordinary(300))
    judge, _ = feed(OutlierFilter(3.0, warmup=50, patience=1_000), ordinary(300)[:60])
    for pair in ordinary(300)[60:]:
        assert not judge.accept(1e6, 10.0)
        assert not judge.accept(1.0, 1e30)
        assert judge.accept(*pair)
    assert learned(judge) == learned(clean) | {"surplus": 240}
    assert judge.dropped == 480


def test_injected_outliers_are_found_for_as_long_as_they_come() -> None:
    rng = np.random.default_rng(1)
    judge = OutlierFilter(4.0, warmup=50)
    feed(judge, ordinary(50))
    for pair in ordinary(5_000, seed=2):
        injected = rng.random() < 0.2
        assert judge.accept(pair[0] * (100.0 if injected else 1.0), pair[1]) is not injected
    assert 900 < judge.dropped < 1_100


@pytest.mark.parametrize("level", [3.0, 1e3, 1e20])
def test_a_lasting_shift_is_taken_up(level: float) -> None:
    judge, _ = feed(OutlierFilter(3.0, warmup=30, patience=12), ordinary(200))
    _, verdicts = feed(judge, ordinary(300, seed=1, level=level))
    assert verdicts == [False] * 12 + [True] * 288
    _, verdicts = feed(judge, [(4.0 * level, 10.0 * level), (level, 40.0 * level)])
    assert verdicts == [False, False]  # and the new level is guarded like the old one
    assert all(feed(judge, ordinary(300, seed=2))[1])  # downwards there is nothing to take up


def test_a_shift_with_remnants_of_the_old_level_is_taken_up() -> None:
    """Not N rejections in a row, but that they outnumber the rest: a quarter stays as it was."""
    judge, _ = feed(OutlierFilter(3.0, warmup=30, patience=12), ordinary(200))
    new = ordinary(400, seed=1, level=50.0)
    new[::4] = ordinary(100, seed=2)
    _, verdicts = feed(judge, new)
    assert not any(a for i, a in enumerate(verdicts[:20]) if i % 4)
    assert all(verdicts[40:])


def test_bursts_shorter_than_the_patience_are_dropped_whole() -> None:
    judge, _ = feed(OutlierFilter(3.0, warmup=30, patience=12), ordinary(100))
    for seed in range(1, 6):
        assert not any(feed(judge, [(1e3, 10.0)] * 11)[1])
        assert all(feed(judge, ordinary(11, seed))[1])


def test_equal_values_and_their_rounding_pass() -> None:
    one = np.float32(0.1)
    judge, _ = feed(OutlierFilter(3.0, warmup=2), [(float(one), 1.0)] * 20)
    assert judge.accept(float(np.nextafter(one, np.float32(1))), 1.0)
    assert not judge.accept(0.2, 1.0)


@pytest.mark.parametrize("cut", [0, 10, 205])
def test_a_restored_filter_goes_on_exactly(cut: int) -> None:
    pairs = [*ordinary(200), *ordinary(200, level=20.0), (math.nan, 1.0), *ordinary(50)]
    straight, expected = feed(OutlierFilter(3.0, warmup=30, patience=12), pairs)
    before, verdicts = feed(OutlierFilter(3.0, warmup=30, patience=12), pairs[:cut])
    saved = json.loads(json.dumps(before.state()))
    after = OutlierFilter(3.0, warmup=30, patience=12)
    after.restore(saved)
    verdicts += feed(after, pairs[cut:])[1]
    assert verdicts == expected
    assert after.state() == straight.state()
    assert straight.dropped == 13


def test_refusals() -> None:
    bad: list[dict[str, float]] = [
        {"threshold": -1.0}, {"threshold": math.inf}, {"threshold": math.nan}, {"warmup": 1},
        {"decay": 0.0}, {"decay": 1.0}, {"patience": 0},
    ]  # fmt: skip
    for values in bad:
        (name,) = values
        with pytest.raises(ValueError, match=f"{name} is {values[name]}, allowed"):
            OutlierFilter(**({"threshold": 3.0} | values))  # type: ignore[arg-type]
    judge, _ = feed(OutlierFilter(3.0), ordinary(5))
    state = judge.state()
    for wrong in ({}, state | {"more": 1}, state | {"norm_mean": math.nan}, state | {"seen": -1}):
        with pytest.raises(ValueError, match="not a state of OutlierFilter"):
            judge.restore(wrong)
    assert judge.state() == state
