"""Epsilon: its schedules, and the choice that it makes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from drl_mpi.acting.exploration import EpsilonSchedule, epsilon_greedy, per_actor_epsilons
from drl_mpi.experience.rng import make_rng


class Scripted:
    """A generator whose numbers are given: those that explore, and those that choose."""

    def __init__(self, *numbers: list[float]) -> None:
        self.numbers = np.array(numbers)

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        assert self.numbers.shape == shape
        return self.numbers


def test_the_schedule_is_a_line_and_then_flat() -> None:
    epsilon = EpsilonSchedule(1.0, 0.1, 1_000_000)
    assert epsilon(0) == 1.0
    assert epsilon(250_000) == pytest.approx(0.775)
    assert epsilon(999_999) > 0.1
    assert [epsilon(count) for count in (1_000_000, 1_000_001, 10**12)] == [0.1] * 3
    assert epsilon(-5) == 1.0
    assert EpsilonSchedule(0.3, 0.3, 7)(3) == 0.3
    for end in np.linspace(0.0, 0.7, 71).tolist():  # exactly, where the line itself may round
        assert EpsilonSchedule(0.7, end, 977)(977) == end


def test_the_schedule_never_leaves_its_bounds_nor_rises() -> None:
    epsilon = EpsilonSchedule(0.7, 0.3, 977)
    values = [epsilon(count) for count in range(1_000)]
    assert values == sorted(values, reverse=True)
    assert (max(values), min(values)) == (0.7, 0.3)


@pytest.mark.parametrize("bad", [(0.1, 1.0, 9), (1.1, 0.0, 9), (1.0, -0.1, 9), (math.nan, 0.0, 9)])
def test_a_schedule_that_cannot_work(bad: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="epsilon goes from"):
        EpsilonSchedule(*bad)
    with pytest.raises(ValueError, match="horizon is 0"):
        EpsilonSchedule(1.0, 0.1, 0)


def test_per_actor_epsilons_are_horgans() -> None:
    epsilons = per_actor_epsilons(360)
    assert epsilons.shape == (360,)
    assert epsilons.dtype == np.float64
    for i in (0, 1, 100, 359):
        assert epsilons[i] == pytest.approx(0.4 ** (1 + 7 * i / 359))
    np.testing.assert_allclose(per_actor_epsilons(3, 0.5, 2.0), [0.5, 0.25, 0.125])
    np.testing.assert_allclose(per_actor_epsilons(1), [0.4])
    for bad, name in (({"num": 0}, "num"), ({"base": 0.0}, "base"), ({"alpha": -1.0}, "alpha")):
        with pytest.raises(ValueError, match=f"{name} is"):
            per_actor_epsilons(**({"num": 4} | bad))  # type: ignore[arg-type]


def test_the_choice_by_its_random_numbers() -> None:
    q = np.array([[0.0, 3.0, 1.0]] * 6, np.float32)
    rng = Scripted([0.3, 0.29, 0.29, 0.29, 0.0, 1 - 2**-53], [0.9, 0.9, 0.4, 0.0, 1 - 2**-53, 0.0])
    actions, log_probs = epsilon_greedy(q, 0.3, rng)  # type: ignore[arg-type]
    assert actions.tolist() == [1, 2, 1, 0, 2, 1]
    assert actions.dtype == np.int64
    assert log_probs.dtype == np.float32
    np.testing.assert_allclose(np.exp(log_probs), [0.8, 0.1, 0.8, 0.1, 0.1, 0.8], rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 16, 17, 18, 1000, 12345])
def test_the_largest_random_number_is_an_action(count: int) -> None:
    rng = Scripted([0.0], [1 - 2**-53])
    actions, _ = epsilon_greedy(np.zeros((1, count), np.float32), 1.0, rng)  # type: ignore[arg-type]
    assert actions.tolist() == [count - 1]


def test_frequencies_are_the_log_probs() -> None:
    n, rng = 40_000, make_rng(3)
    for values, epsilon in (([1.0, 5.0, 2.0, -1.0], 0.4), ([2.0, 1.0], 1.0), ([0.0] * 3, 0.1)):
        q = np.tile(np.array(values, np.float32), (n, 1))
        actions, log_probs = epsilon_greedy(q, epsilon, rng)
        frequencies = np.bincount(actions, minlength=len(values)) / n
        probabilities = np.full(len(values), epsilon / len(values))
        probabilities[np.argmax(values)] += 1.0 - epsilon
        np.testing.assert_allclose(frequencies, probabilities, atol=0.012)
        np.testing.assert_allclose(np.exp(log_probs), probabilities[actions], rtol=1e-5)


def test_one_epsilon_per_row() -> None:
    n = 30_000
    q = np.tile(np.array([0.0, 1.0], np.float32), (n, 1))
    epsilons = np.repeat([0.0, 0.5, 1.0], n // 3).astype(np.float32)
    actions, log_probs = epsilon_greedy(q, epsilons, make_rng(4))
    shares = (actions == 0).reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(shares, [0.0, 0.25, 0.5], atol=0.02)
    assert (log_probs[: n // 3] == 0.0).all()
    assert np.isfinite(log_probs).all()


def test_greedy_takes_the_first_among_equals_and_infinities() -> None:
    q = np.array([[1, 2, 2], [0, 0, 0], [-1, -math.inf, -1], [0, math.inf, 9]], np.float32)
    actions, log_probs = epsilon_greedy(q, 0.0, make_rng(5))
    assert actions.tolist() == [1, 0, 0, 1]
    assert log_probs.tolist() == [0.0] * 4


def test_a_single_action_is_certain_and_no_rows_are_no_error() -> None:
    actions, log_probs = epsilon_greedy(np.ones((3, 1), np.float32), 0.7, make_rng(6))
    assert actions.tolist() == [0, 0, 0]
    assert log_probs.tolist() == [0.0] * 3
    actions, log_probs = epsilon_greedy(np.ones((0, 4), np.float32), 0.7, make_rng(6))
    assert actions.shape == log_probs.shape == (0,)


@pytest.mark.parametrize("actions", [2, 18])
def test_the_stream_goes_on_alike_whatever_is_chosen(actions: int) -> None:
    expected = make_rng(7)
    expected.random(2 * 5)
    following = expected.random(4)
    for epsilon in (0.0, 0.5, 1.0):
        rng = make_rng(7)
        epsilon_greedy(np.zeros((5, actions), np.float32), epsilon, rng)
        np.testing.assert_array_equal(rng.random(4), following)


def test_refusals() -> None:
    q = np.zeros((4, 3), np.float32)
    q[2, 1] = q[3, 0] = math.nan
    with pytest.raises(ValueError, match=r"row 2 are \[0.0, nan, 0.0\] \(2 of 4 rows\)"):
        epsilon_greedy(q, 0.1, make_rng(8))
    good = np.zeros((4, 3), np.float32)
    for bad in (1.1, -0.1, math.nan, np.zeros(3), np.array([0, 0, 2.0, 0]), np.zeros((4, 1))):
        with pytest.raises(ValueError, match="epsilons are"):
            epsilon_greedy(good, bad, make_rng(8))
    for shape in ((3,), (4, 0), (4, 3, 1)):
        with pytest.raises(ValueError, match="q has shape"):
            epsilon_greedy(np.zeros(shape, np.float32), 0.1, make_rng(8))
