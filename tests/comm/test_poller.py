"""Waiting: the back-off with a fake clock, and its price under a real mpirun."""

from pathlib import Path

import pytest

from drl_mpi.comm.poller import FIRST_SLEEP_S, LONGEST_SLEEP_S, Poller, SilenceError, Watch

PROGRAMS = Path(__file__).parent / "programs"


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now = 100.0
        self.sleeps = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += seconds


def after(count, value):
    """``None`` that often, then the value."""
    answers = iter([None] * count)
    return lambda: next(answers, value)


def make(silence_s=1e9):
    clock = Clock()
    return clock, Poller(silence_s, clock, clock.sleep)


def test_what_is_ready_costs_no_sleep():
    clock, poller = make()
    assert poller.wait(after(0, "x"), "it") == "x"
    assert clock.sleeps == []
    assert poller.idle_s == 0.0


def test_pauses_double_from_the_first_to_the_longest_in_each_wait():
    clock, poller = make()
    expected = [min(FIRST_SLEEP_S * 2**i, LONGEST_SLEEP_S) for i in range(12)]
    assert expected[0] == pytest.approx(20e-6)
    assert expected[-1] == pytest.approx(1e-3)
    for _ in range(2):
        clock.sleeps.clear()
        assert poller.wait(after(12, 5), "it") == 5
        assert clock.sleeps == pytest.approx(expected)


@pytest.mark.parametrize("value", [False, 0, [], ""])
def test_only_none_means_not_yet(value):
    clock, poller = make()
    assert poller.wait(after(3, value), "it") == value
    assert len(clock.sleeps) == 3


def test_idle_time_is_the_sum_of_all_waits():
    clock, poller = make()
    for count in (5, 0, 20):
        poller.wait(after(count, 1), "it")
        clock.now += 7.0  # work between waits is not idle
    assert poller.idle_s == pytest.approx(sum(clock.sleeps))


def test_time_spent_in_ready_counts_as_waiting():
    clock, poller = make()
    answers = after(2, 1)

    def slow():
        clock.now += 1.0
        return answers()

    poller.wait(slow, "it")
    assert poller.idle_s == pytest.approx(2.0 + sum(clock.sleeps))


def test_silence_ends_the_wait_and_says_what_for():
    clock, poller = make(silence_s=2.0)
    began = clock.now
    with pytest.raises(SilenceError) as caught:
        poller.wait(lambda: None, "rank 3's unroll")
    assert 2.0 < clock.now - began < 2.0 + 2 * LONGEST_SLEEP_S
    assert poller.idle_s == pytest.approx(clock.now - began)  # also accounted when given up
    text = str(caught.value)
    assert "waited 2 s for rank 3's unroll" in text
    assert "silence timeout of 2 s" in text
    assert "raise the silence timeout" in text


def test_the_background_is_driven_at_every_poll():
    clock, poller = make()
    calls = []
    poller.background = lambda: calls.append(clock.now)
    poller.wait(after(0, 1), "it")
    assert len(calls) == 1  # also when nothing has to be waited for
    poller.wait(after(4, 1), "it")
    assert len(calls) == 1 + 5


def test_an_error_in_ready_comes_through_and_is_accounted():
    clock, poller = make()
    answers = iter([None, None])
    with pytest.raises(StopIteration):
        poller.wait(lambda: next(answers), "it")
    assert poller.idle_s == pytest.approx(sum(clock.sleeps))
    assert poller.idle_s > 0.0


def watch(ranks=(3, 5), silence_s=60.0):
    clock = Clock()
    return clock, Watch(ranks, silence_s, clock)


def test_a_rank_that_says_nothing_is_named_though_others_speak():
    clock, watching = watch()
    for _ in range(7):
        clock.now += 10.0
        if clock.now - 100.0 > 60.0:
            with pytest.raises(SilenceError) as caught:
                watching.check()
            break
        watching.heard(3)
        watching.check()
    text = str(caught.value)
    assert "nothing came from rank 5 for 70 s" in text
    assert "silence timeout of 60 s" in text
    assert "raise the silence timeout" in text


def test_a_watch_begins_with_its_making_and_anew_with_every_word():
    clock, watching = watch()
    clock.now += 60.0
    watching.check()  # not longer than allowed
    watching.heard(3)
    watching.heard(5)
    clock.now += 60.0
    watching.check()
    clock.now += 0.1
    with pytest.raises(SilenceError, match="rank 3"):
        watching.check()


def test_nothing_more_is_expected_of_a_rank_that_took_its_leave():
    clock, watching = watch()
    watching.forget(5)
    watching.forget(5)
    clock.now += 61.0
    watching.heard(3)
    watching.check()
    watching.forget(3)
    clock.now += 1e9
    watching.check()


def test_nobody_to_watch_is_never_silent():
    clock, watching = watch(ranks=())
    clock.now += 1e9
    watching.check()


def test_an_idle_wait_costs_less_than_a_twentieth_of_a_core(mpirun):
    done = mpirun(2, PROGRAMS / "idle_wait.py", 2.0)
    assert done.rc == 0, done.text
    waited, cpu, idle = map(float, done.stdout.split())
    assert waited > 1.9
    assert idle == pytest.approx(waited, rel=0.05)
    assert cpu / waited < 0.05, f"{cpu:.3f} s of CPU for {waited:.3f} s of waiting"
