"""The live display of a run: one line that rewrites itself, or plain lines in a log file."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TextIO

TTY_VARIABLE = "DRL_MPI_TTY"
"""Columns of the terminal behind a launcher's pipe; set by the job that relaunches itself."""

TERMINAL_PERIOD_S = 1.0
PLAIN_PERIOD_S = 10.0
ETA_WINDOW_S = 60.0
ETA_AFTER_S = 5.0
"""Before, the speed is that of starting."""

# What a line shows, left to right, and what a narrow terminal gives up first.
_ORDER = (
    "frames", "rate", "steps", "return", "episodes", "lag", "wait", "updates", "version", "eta",
)  # fmt: skip
_FIRST_TO_GO = (
    "version", "updates", "steps", "episodes", "wait", "lag", "rate", "eta", "return",
)  # fmt: skip
_MAKE_ROOM = 6
"""How many of these make room for what the system has to say beyond the row."""


class Progress:
    """Shows rows of progress.csv as they come.

    `width` is the terminal's in columns, None for anything that is not a terminal. The run ends
    with `total_frames`, or when its rows' `time_s` has come to `total_s`. `clock` gives seconds. A
    stream that breaks (a closed pipe, a full disk) silences the display, never the run.
    """

    def __init__(
        self,
        total_frames: int,
        stream: TextIO | None = None,
        width: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        total_s: float = math.inf,
    ) -> None:
        self._total = total_frames
        self._total_s = total_s
        self._stream: TextIO | None = sys.stdout if stream is None else stream
        self._width = width
        self._clock = clock
        self._period = PLAIN_PERIOD_S if width is None else TERMINAL_PERIOD_S
        self._shown_at = -math.inf
        self._row: Mapping[str, float] | None = None
        self._also = ""
        self._shown: Mapping[str, float] | None = None
        self._recent: deque[tuple[float, float]] = deque()  # (seconds, frames), for the ETA

    def update(self, row: Mapping[str, float], also: str = "") -> None:
        """Takes a row; shows it if the last one was shown long enough ago.

        Args:
            row: of progress.csv.
            also: what the system says beyond it; a terminal shows what it has room for.
        """
        now = self._clock()
        self._row, self._also = row, also
        self._recent.append((now, row["frames"]))
        while len(self._recent) > 2 and self._recent[1][0] < now - ETA_WINDOW_S:
            self._recent.popleft()
        if now - self._shown_at >= self._period:
            self._shown_at = now
            self._show(row)

    def note(self, message: str) -> None:
        """A line of its own, say "checkpoint saved"; the display goes on below it."""
        if self._width is None:
            self._write(f"{message}\n")
            return
        self._write(f"\r{' ' * (self._width - 1)}\r{message}\n")
        if self._row is not None:
            self._show(self._row)

    def finish(self, message: str = "") -> None:
        """Shows the last row, whatever the time, and ends the line; then `message`."""
        if self._row is not None and self._row is not self._shown:
            self._show(self._row)
        if self._row is not None and self._width is not None:
            self._write("\n")
        if message:
            self._write(f"{message}\n")
        self._row = None

    def line(self, row: Mapping[str, float], width: int | None = None, also: str = "") -> str:
        """The text for one row: at most `width` characters, all there is to say if None."""
        long, short = self._parts(row)
        text = "  ".join([*(long[name] for name in _ORDER), *([also] if also else [])])
        if width is None or len(text) <= width:
            return text
        for gone in range(len(_FIRST_TO_GO) + 1):
            text = "  ".join(short[name] for name in _ORDER if name not in _FIRST_TO_GO[:gone])
            if gone == _MAKE_ROOM:
                also = _cut(also, width - len(text) - 2)
            if len(text) + (2 + len(also) if also else 0) <= width:
                break
        return (f"{text}  {also}" if also else text)[:width]

    def _show(self, row: Mapping[str, float]) -> None:
        self._shown = row
        if self._width is None:
            self._write(f"{self.line(row, also=self._also)}\n")
        else:
            room = max(self._width - 1, 0)  # the last column would wrap on some terminals
            self._write(f"\r{self.line(row, room, self._also):<{room}}")

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._stream = None

    def _parts(self, row: Mapping[str, float]) -> tuple[dict[str, str], dict[str, str]]:
        """Every part of the line, in long words and in short ones."""
        frames, total = row["frames"], self._total
        done = f"{count(frames)}/{count(total)}"
        percent = f"{min(math.floor(100 * frames / total), 100) if total > 0 else 100}%"
        frame_rate = row["frames_per_s"]
        step_rate = rate(frame_rate * row["steps"] / frames if frames > 0 else math.nan)
        score = number(row["return_mean"])
        episodes = count(min(row["episodes"], 100))
        lag, lag_max = number(row["policy_lag_mean"]), number(row["policy_lag_max"], 0)
        actors, learners = share(row["actor_wait"]), share(row["learner_wait"])
        updates, version, eta = count(row["updates"]), count(row["version"]), self._eta(row)
        long = {
            "frames": f"{done} frames {percent}",
            "rate": f"{rate(frame_rate)} frames/s",
            "steps": f"{step_rate} steps/s",
            "return": f"return {score}",
            "episodes": f"(last {episodes} episodes)",
            "lag": f"policy lag {lag} max {lag_max}",
            "wait": f"waiting: actors {actors} learners {learners}",
            "updates": f"{updates} updates",
            "version": f"version {version}",
            "eta": f"ETA {eta}",
        }
        short = {
            "frames": f"{done} {percent}",
            "rate": f"{rate(frame_rate)} f/s",
            "steps": f"{step_rate} st/s",
            "return": f"return {score}",
            "episodes": f"({episodes} ep)",
            "lag": f"lag {lag}/{lag_max}",
            "wait": f"wait a {actors} l {learners}",
            "updates": f"{updates} upd",
            "version": f"v{version}",
            "eta": f"ETA {eta}",
        }
        return long, short

    def _eta(self, row: Mapping[str, float]) -> str:
        """From the speed of the last minute, since a row alone jumps too much; or the time left."""
        (start, first), (end, last) = self._recent[0], self._recent[-1]
        left = math.inf
        if last >= self._total:
            left = 0.0
        elif end - start >= ETA_AFTER_S and last > first:
            left = (self._total - last) * (end - start) / (last - first)
        if self._total_s < math.inf:
            left = min(left, max(0.0, self._total_s - row["time_s"]))
        return duration(left)


def _cut(text: str, room: int) -> str:
    """As much as fits of words and their numbers: no half number, no name without one."""
    if len(text) <= room:
        return text
    words = text[: max(0, room) + 1].split(" ")[:-1]
    while words and (
        not any(sign.isdigit() for sign in words[-1])
        or sum(word.count("(") - word.count(")") for word in words)
    ):
        words.pop()
    return " ".join(words)


def terminal_width(
    stream: TextIO | None = None, environment: Mapping[str, str] | None = None
) -> int | None:
    """Columns of the terminal that `stream` ends in; None if it is not one.

    DRL_MPI_TTY decides if it is set (0 or empty: no terminal), because a rank under mpirun sees a
    pipe in any case. `stream` is stdout unless given.
    """
    stream = sys.stdout if stream is None else stream
    told = (os.environ if environment is None else environment).get(TTY_VARIABLE)
    if told is not None:
        return int(told) if told.isascii() and told.isdigit() and int(told) > 0 else None
    try:
        if not stream.isatty():
            return None
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return None


def count(value: float) -> str:
    """8,214 below ten thousand, then three digits: 12.3k, 1.23M, 4.56G. NaN is -."""
    if not math.isfinite(value):
        return "-"
    if abs(value) < 9_999.5:
        return f"{value:,.0f}"
    for size, unit in ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")):
        scaled = value / size
        for digits, limit in ((2, 9.995), (1, 99.95), (0, 999.5)):
            if abs(scaled) < limit:
                return f"{scaled:.{digits}f}{unit}"
    return f"{value:.3g}"


def rate(value: float) -> str:
    """Per second: 8,214, or 3.2 below ten. NaN is -."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.1f}" if abs(value) < 9.95 else f"{value:,.0f}"


def number(value: float, digits: int = 1) -> str:
    """A plain number; NaN is -."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else "-"


def share(value: float) -> str:
    """0.034 is 3%; NaN is -."""
    return f"{100 * value:.0f}%" if math.isfinite(value) else "-"


def duration(seconds: float) -> str:
    """59s, 12m05s, 1h02m, 2d03h. NaN and infinity are -."""
    if not math.isfinite(seconds):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
