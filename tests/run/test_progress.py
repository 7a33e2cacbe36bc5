"""The live display: what it shows, when, and that it never wraps or ends a run."""

from __future__ import annotations

import io
import math
import re

import pytest

from drl_mpi.run.metrics import COLUMNS
from drl_mpi.run.progress import Progress, _cut, count, duration, rate, share, terminal_width

ROW: dict[str, float] = {
    "time_s": 150.0,
    "frames": 1_234_567,
    "steps": 308_641,
    "updates": 12_345,
    "version": 12_346,
    "episodes": 340,
    "return_mean": -18.34,
    "frames_per_s": 8214.3,
    "policy_lag_mean": 1.21,
    "policy_lag_max": 4,
    "actor_wait": 0.034,
    "learner_wait": 0.12,
}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def shown(width: int | None, total: int = 50_000_000) -> tuple[Progress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return Progress(total, stream, width, clock), stream, clock


def test_the_full_line_says_everything() -> None:
    progress, stream, clock = shown(None)
    progress.update({**ROW, "frames": ROW["frames"] - 10 * 8_000})
    clock.now += 10
    progress.update(ROW)
    line = stream.getvalue().splitlines()[-1]
    for part in (
        "1.23M/50.0M frames 2%",
        "8,214 frames/s",
        "2,054 steps/s",
        "return -18.3",
        "100 episodes",
        "policy lag 1.2 max 4",
        "actors 3%",
        "learners 12%",
        "12.3k updates",
        "version 12.3k",
        "ETA 1h41m",  # 48,765,433 frames at 8,000 a second
    ):
        assert part in line


@pytest.mark.parametrize("width", [0, 1, 2, 8, 15, 16, 41, 60, 80, 100, 120, 184, 185, 220])
def test_a_line_never_wraps(width: int) -> None:
    progress, stream, clock = shown(width)
    progress.update(ROW)
    clock.now += 1
    progress.update({**ROW, "return_mean": -1e300, "frames_per_s": 1e12})
    progress.finish()
    for piece in re.split(r"[\r\n]", stream.getvalue()):
        assert len(piece) <= max(width - 1, 0)


def test_narrow_terminals_keep_what_matters_most() -> None:
    progress, _, _ = shown(80)
    progress.update(ROW)
    assert "wait" in progress.line(ROW, 79)
    assert "upd" not in progress.line(ROW, 79)
    assert progress.line(ROW, 40).startswith("1.23M/50.0M 2%  return -18.3")
    assert progress.line(ROW, 14) == "1.23M/50.0M 2%"


def test_a_terminal_line_covers_the_longer_one_before_it() -> None:
    progress, stream, clock = shown(200)
    progress.update(ROW)
    clock.now += 1
    progress.update({**ROW, "frames_per_s": 1.0})
    lines = stream.getvalue().split("\r")[1:]
    assert [len(line) for line in lines] == [199, 199]


@pytest.mark.parametrize(("width", "period"), [(80, 1.0), (None, 10.0)])
def test_rows_in_between_are_not_shown(width: int | None, period: float) -> None:
    progress, stream, clock = shown(width)
    progress.update(ROW)
    first = stream.getvalue()
    clock.now += 0.9 * period
    progress.update({**ROW, "frames": 2_000_000})
    assert stream.getvalue() == first
    clock.now += 0.1 * period
    progress.update({**ROW, "frames": 3_000_000})
    assert "3.00M" in stream.getvalue()


def test_plain_output_has_no_carriage_returns() -> None:
    progress, stream, _ = shown(None)
    progress.update(ROW)
    progress.note("checkpoint saved")
    progress.finish("done")
    assert "\r" not in stream.getvalue()
    assert stream.getvalue().endswith("\ncheckpoint saved\ndone\n")


def test_finish_shows_the_last_row_once() -> None:
    progress, stream, clock = shown(None)
    progress.update(ROW)
    clock.now += 1
    progress.update({**ROW, "frames": 50_000_000})
    progress.finish("done")
    assert stream.getvalue().count("50.0M/50.0M frames 100%") == 1
    progress, stream, _ = shown(None)
    progress.update(ROW)
    progress.finish("done")
    assert stream.getvalue().count("frames/s") == 1


def test_a_note_stands_on_its_own_line_on_a_terminal() -> None:
    progress, stream, _ = shown(80)
    progress.update(ROW)
    progress.note("saved")
    before, after = stream.getvalue().split("\rsaved\n")
    assert before.endswith(" " * 79)
    assert after.startswith("\r1.23M")


def test_unknown_numbers_are_dashes() -> None:
    progress, _, _ = shown(None)
    nothing = dict.fromkeys(COLUMNS, math.nan) | {"frames": 0, "steps": 0, "episodes": 0}
    progress.update(nothing)
    line = progress.line(nothing)
    assert "return -  " in line
    assert "ETA -" in line
    assert "nan" not in line


def test_no_eta_before_the_speed_is_known() -> None:
    progress, _, clock = shown(None)
    for seconds, eta in ((0, "-"), (4, "-"), (1, "2h42m"), (5, "1h21m")):
        clock.now += seconds
        row = {**ROW, "frames": ROW["frames"] + (25_000 if eta == "2h42m" else 100_000)}
        progress.update(ROW if eta == "-" else row)
        assert progress.line(row).endswith(f"ETA {eta}"), seconds


@pytest.mark.parametrize(
    ("total_s", "total", "eta"),
    [(400.0, 50_000_000, "4m10s"), (9e9, 50_000_000, "1h21m"), (100.0, 50_000_000, "0s"),
     (400.0, 1000, "0s")],
)  # fmt: skip
def test_a_run_ends_with_its_frames_or_with_its_time(total_s, total, eta) -> None:
    clock = Clock()
    progress = Progress(total, io.StringIO(), None, clock, total_s)
    progress.update(ROW)
    clock.now += 10
    row = {**ROW, "frames": ROW["frames"] + 100_000}
    progress.update(row)
    assert progress.line(row).endswith(f"ETA {eta}")


def test_100_percent_only_at_the_end() -> None:
    progress, _, _ = shown(None, total=1000)
    progress.update(ROW)
    assert " 99%" in progress.line({**ROW, "frames": 999})
    assert " 100%" in progress.line({**ROW, "frames": 1000})


def test_a_broken_pipe_does_not_end_the_run() -> None:
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    progress = Progress(1000, Broken(), 80, Clock())
    progress.update(ROW)
    progress.note("saved")
    progress.finish("done")


@pytest.mark.parametrize(
    ("told", "width"),
    [("132", 132), ("0", None), ("", None), ("wide", None), ("-5", None), ("\u0663", None)],
)
def test_the_launcher_tells_the_width(told: str, width: int | None) -> None:
    assert terminal_width(io.StringIO(), {"DRL_MPI_TTY": told}) == width


def test_a_pipe_is_no_terminal() -> None:
    assert terminal_width(io.StringIO(), {}) is None


def test_human_numbers() -> None:
    values = (0, 999, 8214, 9999.6, 12345, 999_600, 1_234_567, 2e8, 1e10, math.nan)
    words = ["0", "999", "8,214", "10.0k", "12.3k", "1.00M", "1.23M", "200M", "10.0G", "-"]
    assert [count(value) for value in values] == words
    assert [rate(value) for value in (0, 3.21, 9.96, 8214.3)] == ["0.0", "3.2", "10", "8,214"]
    assert [share(value) for value in (0.034, 1.0, math.nan)] == ["3%", "100%", "-"]
    seconds = (0, 59.6, 725, 3599.6, 3720, 86_400, 183_600, math.inf)
    spoken = ["0s", "1m00s", "12m05s", "1h00m", "1h02m", "1d00h", "2d03h", "-"]
    assert [duration(value) for value in seconds] == spoken


SAID = "PPS 3,427 TPS 85 batch 7 (4-12) answers 0.7 ms (99% 9)  P1 T2 A2/2  tuner: trying"


def test_what_a_system_says_is_cut_between_numbers() -> None:
    cuts = [_cut(SAID, room) for room in range(-3, len(SAID) + 2)]
    assert cuts[0] == cuts[3 + len("PPS 3,42")] == ""
    assert cuts[3 + len("PPS 3,427")] == "PPS 3,427"
    assert cuts[3 + len("PPS 3,427 TPS 85 batch 7 (4-12")] == "PPS 3,427 TPS 85 batch 7"
    assert cuts[-1] == SAID
    for room, cut in enumerate(cuts, -3):
        assert len(cut) <= max(room, 0)
        assert SAID.startswith(cut)
        assert (SAID + " ")[len(cut)] == " " or not cut
        assert cut.count("(") == cut.count(")")


@pytest.mark.parametrize("width", range(40, 200, 7))
def test_a_narrow_line_has_whole_numbers(width) -> None:
    progress, _, _ = shown(width)
    progress.update(ROW, SAID)
    line = progress.line(ROW, width, SAID)
    assert len(line) <= width
    assert {word for word in line.split() if word[0].isdigit() or word[0] == "("} <= {
        *SAID.split(), *progress.line(ROW).split(), *line.split(SAID[:3])[0].split(),
    }  # fmt: skip
