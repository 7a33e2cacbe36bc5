"""The one place that waits.

A blocking MPI call spins: it burns a whole core for as long as it waits. Ranks share cores here, so
that core is somebody's training step. Polling with back-off from 20 us to 1 ms takes about a tenth
of the CPU time for the same latency at our message sizes.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

_LIBC = ctypes.CDLL(None)
"""Its calls let other threads of Python run meanwhile."""

FIRST_SLEEP_S = 20e-6
LONGEST_SLEEP_S = 1e-3
BRISK_SPIN_S = 250e-6
"""Seconds for which a brisk poller only yields its core, see ``Poller.be_brisk``."""
BRISK_SLEEP_S = 120e-6
"""The longest sleep of a brisk poller after that."""
BRISK_FOR_S = 0.05
"""Seconds without anything happening after which a brisk poller sleeps as long as others."""
SILENCE_S = 600.0


class SilenceError(RuntimeError):
    """Nothing came from a peer for longer than the silence timeout: it is stuck or gone."""


class Watch:
    """Notices one stuck rank among many, which a wait for any of them would not.

    It begins with the first look: until then, all of them may have waited for others to load.

    Args:
        ranks: to hear from.
        silence_s: seconds without a word after which a rank counts as stuck.
    """

    def __init__(
        self, ranks: Iterable[int], silence_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._silence_s = silence_s
        self._clock = clock
        self._heard = dict.fromkeys(ranks, clock())
        self._looked = False

    def heard(self, rank: int) -> None:
        """Notes that something came from a rank, if more is expected of it."""
        if rank in self._heard:
            self._heard[rank] = self._clock()

    def forget(self, rank: int) -> None:
        """Expects nothing more of a rank."""
        self._heard.pop(rank, None)

    def check(self) -> None:
        """Raises SilenceError for a rank that said nothing for too long."""
        now = self._clock()
        if not self._looked:
            self._looked, self._heard = True, dict.fromkeys(self._heard, now)
        silent = [rank for rank, heard in self._heard.items() if now - heard > self._silence_s]
        if silent:
            silent.sort(key=self._heard.__getitem__)  # who was silent first has made others wait
            first, others = silent[0], silent[1:]
            then = f" (then also from {', '.join(map(str, others))})" if others else ""
            raise SilenceError(
                f"nothing came from rank {first} for {now - self._heard[first]:.0f} s{then}, "
                f"longer than the silence timeout of {self._silence_s:.0f} s: it is stuck, or its "
                "link is cut. See its log in the run folder; raise the silence timeout if it is "
                "merely slow"
            )


class Bell:
    """A sleep that other threads can end."""

    def __init__(self) -> None:
        self._silent = threading.Lock()  # half the price of an Event, which this thread pays often
        self._silent.acquire()

    def ring(self) -> None:
        """Ends the present sleep, or the next one."""
        with contextlib.suppress(RuntimeError):  # it has rung already
            self._silent.release()

    def sleep(self, seconds: float) -> None:
        """Sleeps for so long, or until it rings."""
        self._silent.acquire(timeout=seconds)


class Poller:
    """Waits for conditions, and accounts how long.

    Args:
        silence_s: seconds after which a wait is given up. MPI does not report a cut link, so
            every wait needs a bound of its own.
        clock: monotonic seconds; replaced in tests.
        sleep: sleeps for the given seconds; replaced in tests.
        give_way: lets other threads have the core, if any wants it; replaced in tests.
    """

    def __init__(
        self,
        silence_s: float = SILENCE_S,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
        give_way: Callable[[], object] = _LIBC.sched_yield,
    ) -> None:
        self.silence_s = silence_s
        self.idle_s = 0.0
        """Seconds spent waiting so far."""
        self.background: Callable[[], object] | None = None
        """Called at every poll: what needs progress whatever is being waited for. While it returns
        ``True`` it is called again soon."""
        self._clock = clock
        self.sleep = sleep
        """Replaced where other threads wake this one, see ``Bell``."""
        self._give_way = give_way
        self._brisk = False
        self._spin_s = 0.0

    def be_brisk(self, spin_s: float = BRISK_SPIN_S) -> None:
        """From now on waits notice at once what comes soon after something else happened.

        For ranks that exchange a message every few milliseconds. The shortest sleep takes some 80
        us on a virtual machine, and each message would wait for two of them at each end. So at
        first there are none: the core is only offered to others, which costs nothing while they
        want it. After that, sleeps stay short for a while.

        Args:
            spin_s: seconds without sleep.
        """
        self._brisk, self._spin_s = True, spin_s
        _wake_on_time()

    def wait(self, ready: Callable[[], T | None], what: str) -> T:
        """Calls ``ready`` with back-off until it returns something other than ``None``.

        Args:
            ready: must not block; it should drive whatever else needs progress.
            what: what is being waited for, for the error's text.

        Raises:
            SilenceError: after ``silence_s`` seconds without success.
        """
        self._progress()
        result = ready()
        if result is not None:
            return result
        began = stirred = self._clock()
        pause = FIRST_SLEEP_S
        try:
            while True:
                spinning = self._brisk and self._clock() - stirred < self._spin_s
                if spinning:
                    self._give_way()
                else:
                    self.sleep(pause)
                busy = self._progress()
                result = ready()
                if result is not None:
                    return result
                now = self._clock()
                waited = now - began
                if waited > self.silence_s:
                    raise SilenceError(
                        f"waited {waited:.0f} s for {what}, longer than the silence timeout of "
                        f"{self.silence_s:.0f} s: that rank is stuck, or its link is cut. See its "
                        "log in the run folder; raise the silence timeout if it is merely slow"
                    )
                if busy:
                    stirred, pause = now, FIRST_SLEEP_S
                    continue
                if spinning:
                    continue
                brisk = self._brisk and now - stirred < BRISK_FOR_S
                pause = min(2 * pause, BRISK_SLEEP_S if brisk else LONGEST_SLEEP_S)
        finally:
            self.idle_s += self._clock() - began

    def _progress(self) -> bool:
        return self.background is not None and self.background() is True


def _wake_on_time() -> None:
    """Has Linux end this thread's sleeps when they are over, not up to 50 us later."""
    if sys.platform.startswith("linux"):
        _LIBC.prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # in nanoseconds


_PR_SET_TIMERSLACK = 29
