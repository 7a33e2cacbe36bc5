"""Waiting: the back-off with a fake clock, and its price under a real mpirun."""

import ctypes
import sys
import threading
import time
from pathlib import Path

import pytest

from drl_mpi.comm.poller import (
    BRISK_FOR_S,
    BRISK_SLEEP_S,
    BRISK_SPIN_S,
    FIRST_SLEEP_S,
    LONGEST_SLEEP_S,
    Bell,
    Poller,
    SilenceError,
    Watch,
)

PROGRAMS = Path(__file__).parent / "programs"


YIELD_S = 1e-5


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now = 100.0
        self.sleeps = []
        self.yields = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += seconds

    def give_way(self):
        self.yields.append(self.now)
        self.now += YIELD_S


def after(count, value):
    """``None`` that often, then the value."""
    answers = iter([None] * count)
    return lambda: next(answers, value)


def make(silence_s=1e9):
    clock = Clock()
    return clock, Poller(silence_s, clock, clock.sleep, clock.give_way)


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


def test_a_busy_background_is_called_again_soon():
    """While it moves something pauses stay short; when it rests they grow from the first on."""
    clock, poller = make()
    busy = iter([True, True, False, True, True, True, False, False, True])
    poller.background = lambda: next(busy)
    poller.wait(after(8, 1), "it")
    doublings = [0, 0, 1, 0, 0, 0, 1, 2]  # the first answer came before the first pause
    assert clock.sleeps == pytest.approx([FIRST_SLEEP_S * 2**i for i in doublings])


@pytest.mark.parametrize("answer", [None, False, 1, "moved"])
def test_only_true_means_busy(answer):
    """Publishers return whatever they like."""
    clock, poller = make()
    poller.background = lambda: answer
    poller.wait(after(3, 1), "it")
    assert clock.sleeps == pytest.approx([FIRST_SLEEP_S * 2**i for i in range(3)])


def test_a_busy_background_does_not_hide_silence():
    _, poller = make(silence_s=0.01)
    poller.background = lambda: True
    with pytest.raises(SilenceError):
        poller.wait(lambda: None, "it")


def test_the_background_comes_before_what_is_waited_for():
    """Else a wait would pause once more for what the background has just brought."""
    clock, poller = make()
    brought = []
    poller.background = lambda: brought.append(1)
    poller.wait(lambda: True if brought else None, "it")
    assert clock.sleeps == []
    poller.wait(lambda: True if len(brought) == 3 else None, "it")
    assert len(clock.sleeps) == 1


def test_a_sleep_that_was_replaced_is_used_from_then_on():
    clock, poller = make()
    longer = []
    poller.sleep = lambda seconds: longer.append(seconds) or clock.sleep(seconds)
    poller.wait(after(2, 1), "it")
    assert len(longer) == 2


def make_brisk(monkeypatch, spin_s=0.0):
    monkeypatch.setattr("drl_mpi.comm.poller._wake_on_time", lambda: None)
    clock, poller = make()
    poller.be_brisk(spin_s)
    return clock, poller


def test_a_brisk_poller_sleeps_briefly_for_a_while_and_then_as_others_do(monkeypatch):
    clock, poller = make_brisk(monkeypatch)
    began = clock.now
    poller.wait(after(500, 1), "it")
    times, expected, pause = [], [], FIRST_SLEEP_S
    now = began
    for slept in clock.sleeps:
        expected.append(pause)
        now += slept
        times.append(now - began)
        longest = BRISK_SLEEP_S if times[-1] < BRISK_FOR_S else LONGEST_SLEEP_S
        pause = min(2 * pause, longest)
    assert clock.sleeps == pytest.approx(expected)
    brisk = [slept for slept, time in zip(clock.sleeps, times) if time < BRISK_FOR_S]
    assert max(brisk) == pytest.approx(BRISK_SLEEP_S)
    assert len(brisk) > 400
    assert clock.sleeps[-1] == pytest.approx(LONGEST_SLEEP_S)


def test_a_brisk_poller_begins_anew_whenever_something_happens(monkeypatch):
    clock, poller = make_brisk(monkeypatch)
    began = clock.now
    due = [began + 0.04, began + 0.08, began + 0.12]

    def background():
        if due and clock.now >= due[0]:
            due.pop(0)
            return True
        return None

    poller.background = background
    poller.wait(lambda: True if clock.now - began > 0.16 else None, "it")
    assert not due
    assert max(clock.sleeps) == pytest.approx(BRISK_SLEEP_S)
    assert [slept for slept in clock.sleeps if slept == FIRST_SLEEP_S] == [FIRST_SLEEP_S] * 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others have no such setting")
def test_a_brisk_poller_does_not_sleep_at_first(monkeypatch):
    clock, poller = make_brisk(monkeypatch, BRISK_SPIN_S)
    for _ in range(3):
        clock.sleeps.clear()
        clock.yields.clear()
        began = clock.now
        poller.wait(after(40, 1), "it")
        assert len(clock.yields) == pytest.approx(BRISK_SPIN_S / YIELD_S, abs=1)
        assert max(clock.yields) < began + BRISK_SPIN_S
        assert clock.sleeps[0] == FIRST_SLEEP_S


def test_a_brisk_poller_does_not_sleep_just_after_something_happened(monkeypatch):
    clock, poller = make_brisk(monkeypatch, BRISK_SPIN_S)
    happens = clock.now + 0.02
    busy = []

    def background():
        if not busy and clock.now >= happens:
            busy.append(clock.now)
            return True
        return None

    poller.background = background
    poller.wait(lambda: True if clock.now > happens + 0.01 else None, "it")
    late = [time for time in clock.yields if time >= busy[0]]
    assert len(late) == pytest.approx(BRISK_SPIN_S / YIELD_S, abs=1)
    assert max(late) < busy[0] + BRISK_SPIN_S


def test_nobody_else_spins():
    clock, poller = make()
    poller.wait(after(40, 1), "it")
    assert clock.yields == []


def test_the_sleeps_of_a_brisk_thread_end_on_time():
    """Linux rounds them up by 50 us otherwise. Another thread's are left as they are."""
    slack = []

    def look():
        return ctypes.CDLL(None).prctl(30, 0, 0, 0, 0)

    def brisk():
        Poller().be_brisk()
        slack.append(look())

    before = look()
    thread = threading.Thread(target=brisk)
    thread.start()
    thread.join()
    assert slack == [1000]
    assert look() == before


LONG_S = 60.0
"""No sleep of a test lasts so long: one that is not woken shows."""


def test_a_bell_wakes_who_sleeps_from_another_thread():
    bell, asleep = Bell(), threading.Event()
    woken = []

    def sleeper():
        asleep.set()
        bell.sleep(LONG_S)
        woken.append(True)

    thread = threading.Thread(target=sleeper, daemon=True)
    began = time.monotonic()
    thread.start()
    asleep.wait()
    bell.ring()
    thread.join(LONG_S)
    assert woken == [True]
    assert time.monotonic() - began < LONG_S / 2


def test_a_bell_that_rang_before_ends_the_next_sleep_and_only_that():
    bell = Bell()
    bell.ring()
    bell.ring()
    began = time.monotonic()
    bell.sleep(LONG_S)
    assert time.monotonic() - began < LONG_S / 2
    began = time.monotonic()
    bell.sleep(0.01)
    assert time.monotonic() - began > 0.005


def test_a_poller_with_a_bell_is_woken_by_what_it_waits_for(monkeypatch):
    """It would sleep for a minute at a time."""
    monkeypatch.setattr("drl_mpi.comm.poller.FIRST_SLEEP_S", LONG_S)
    monkeypatch.setattr("drl_mpi.comm.poller.LONGEST_SLEEP_S", LONG_S)
    bell, done, looked = Bell(), [], threading.Event()

    def work():
        looked.wait()
        done.append("gradient")
        bell.ring()

    def ready():
        looked.set()
        return done[0] if done else None

    poller = Poller(10 * LONG_S, sleep=bell.sleep)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert poller.wait(ready, "a gradient") == "gradient"
    assert poller.idle_s < LONG_S / 2
    thread.join()


def test_an_error_in_ready_comes_through_and_is_accounted():
    clock, poller = make()
    answers = iter([None, None])
    with pytest.raises(StopIteration):
        poller.wait(lambda: next(answers), "it")
    assert poller.idle_s == pytest.approx(sum(clock.sleeps))
    assert poller.idle_s > 0.0


def watch(ranks=(3, 5), silence_s=60.0):
    clock = Clock()
    watching = Watch(ranks, silence_s, clock)
    clock.now += 1e6
    watching.check()  # it begins here
    return clock, watching


def test_a_rank_that_says_nothing_is_named_though_others_speak():
    clock, watching = watch()
    began = clock.now
    for _ in range(7):
        clock.now += 10.0
        if clock.now - began > 60.0:
            with pytest.raises(SilenceError) as caught:
                watching.check()
            break
        watching.heard(3)
        watching.check()
    text = str(caught.value)
    assert "nothing came from rank 5 for 70 s" in text
    assert "silence timeout of 60 s" in text
    assert "raise the silence timeout" in text


def test_a_watch_begins_with_its_first_look_and_anew_with_every_word():
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
    watching.heard(5)  # a last word changes nothing
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
