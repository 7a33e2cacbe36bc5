"""progress.csv without seams, and the meters that fill it."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from drl_mpi.errors import UsageError
from drl_mpi.run.metrics import (
    COLUMNS,
    Episodes,
    Lag,
    Metrics,
    ProgressLog,
    Rate,
    Share,
    read_progress,
)

HEADER = (
    "time_s,frames,steps,updates,version,episodes,return_mean,frames_per_s,"
    "policy_lag_mean,policy_lag_max,actor_wait,learner_wait"
)


def row(frames: int, **more: float) -> dict[str, float]:
    values = dict.fromkeys(COLUMNS, 0.5)
    return {**values, "frames": frames, "steps": frames // 4, "return_mean": math.nan, **more}


def frames_in(path: Path) -> list[float]:
    return list(read_progress(path)["frames"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "progress.csv"


def test_the_columns_begin_as_promised(path: Path) -> None:
    log = ProgressLog(path, ["loss", "grad/norm"])
    log.append(row(400, loss=1.25))
    header, line = path.read_text().splitlines()
    assert header == f"{HEADER},loss,grad/norm"
    assert line == "0.5,400,100,0.5,0.5,0.5,nan,0.5,0.5,0.5,0.5,0.5,1.25,nan"


def test_every_row_is_on_disk_at_once(path: Path) -> None:
    log = ProgressLog(path)
    for frames in (100, 200, 300):
        log.append(row(frames))
        assert frames_in(path)[-1] == frames


def test_large_counts_are_exact(path: Path) -> None:
    ProgressLog(path).append(row(200_000_123_457))
    assert ",200000123457," in path.read_text()


def test_a_second_row_at_the_same_frames_is_left_out(path: Path) -> None:
    log = ProgressLog(path)
    assert log.append(row(100))
    assert not log.append(row(100))
    assert frames_in(path) == [100]


@pytest.mark.parametrize(
    "bad",
    [row(50), row(200, typo=1.0), {"frames": 200.0}, row(200) | {"frames": math.nan}],
)
def test_wrong_rows_are_refused(path: Path, bad: dict[str, float]) -> None:
    log = ProgressLog(path)
    log.append(row(100))
    with pytest.raises(ValueError, match="row"):
        log.append(bad)
    assert frames_in(path) == [100]


def test_resuming_drops_rows_beyond_the_checkpoint(path: Path) -> None:
    log = ProgressLog(path)
    for frames in (100, 200, 300, 400):
        log.append(row(frames, time_s=frames / 10))
    resumed = ProgressLog(path)
    last = resumed.resume_at(200)
    assert last is not None
    assert last["time_s"] == 20
    assert frames_in(path) == [100, 200]
    resumed.append(row(250))
    assert frames_in(path) == [100, 200, 250]


@pytest.mark.parametrize("cut", [1, 2, 5, 12, 30])
def test_a_line_torn_by_a_kill_does_no_harm(path: Path, cut: int) -> None:
    log = ProgressLog(path)
    log.append(row(100))
    log.append(row(200))
    whole = path.read_bytes()
    os.truncate(path, len(whole) - cut)
    assert frames_in(path) == [100]
    again = ProgressLog(path)  # without resume_at: append alone must not glue lines together
    again.append(row(300))
    assert frames_in(path) == [100, 300]
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize("keep", [0, 1, 19, 20, 21, len(HEADER) - 1, len(HEADER), len(HEADER) + 1])
def test_a_torn_header_is_written_again(path: Path, keep: int) -> None:
    path.write_text(f"{HEADER}\n"[:keep])
    ProgressLog(path).append(row(100))
    assert path.read_text().startswith(f"{HEADER}\n")
    assert frames_in(path) == [100]


def test_lines_that_are_no_rows_are_passed_over(path: Path) -> None:
    good = [f"{i},{i}00" + ",0" * 10 for i in range(1, 4)]
    short, words, back = "2,200", good[1].replace("200", "\0\0\0"), good[0]
    path.write_text("\n".join([HEADER, good[0], short, words, back, *good[1:], ""]))
    assert frames_in(path) == [100, 200, 300]


def test_rows_survive_a_new_set_of_columns(path: Path) -> None:
    ProgressLog(path, ["old"]).append(row(100, old=1))
    log = ProgressLog(path, ["new"])
    log.append(row(200, new=2))
    table = read_progress(path)
    np.testing.assert_array_equal(table["old"], [1, math.nan])
    np.testing.assert_array_equal(table["new"], [math.nan, 2])


def test_trimming_is_atomic(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ProgressLog(path)
    log.append(row(100))
    log.append(row(200))
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        log.resume_at(100)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "text", ["hello\n", "a,b\n1,2\n", "\x00\xff\n", f"{HEADER},loss,loss\n", "hi"]
)
def test_other_files_are_left_alone(path: Path, text: str) -> None:
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"progress\.csv"):
        ProgressLog(path)
    assert path.read_text(encoding="latin-1") == text


def test_reading_a_missing_file_is_a_usage_error(path: Path) -> None:
    with pytest.raises(UsageError, match="missing"):
        read_progress(path)


def test_column_names_are_checked(path: Path) -> None:
    for extra in (["frames"], ["a", "a"], ["a,b"], [""]):
        with pytest.raises(ValueError, match="columns"):
            ProgressLog(path, extra)


def events(folder: Path) -> list[event_pb2.Event]:
    """All events in the order in which TensorBoard reads them; the framing is 12 + n + 4 bytes."""
    found = []
    for file in sorted(folder.glob("events.*")):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_tensorboard_gets_the_rows_over_frames_and_forgets_beyond_a_resume(path: Path) -> None:
    folder = path.parent / "tb"
    log = ProgressLog(path, tensorboard=folder)
    log.append(row(100, frames_per_s=7))
    log.append(row(101, frames_per_s=8))
    log.close()
    resumed = ProgressLog(path, tensorboard=folder)  # within the same second: its own file
    resumed.resume_at(100)
    resumed.append(row(150, frames_per_s=9))
    resumed.close()
    resumed.append(row(151, frames_per_s=10))
    resumed.close()
    curve: dict[int, float] = {}
    for event in events(folder):
        assert abs(event.wall_time - time.time()) < 100
        if event.HasField("session_log"):
            curve = {step: value for step, value in curve.items() if step < event.step}
        for value in event.summary.value:
            assert value.tag in COLUMNS
            assert value.tag != "return_mean", "NaN is no point of a curve"
            if value.tag == "frames_per_s":
                curve[event.step] = value.simple_value
    assert curve == {100: 7, 150: 9, 151: 10}


@pytest.fixture
def no_room() -> Iterator[Callable[[int], None]]:
    """``no_room(n)``: files cannot grow beyond n bytes any more, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_where_events_cannot_be_written_the_run_goes_on(
    path: Path, no_room: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = path.parent / "tb"
    log = ProgressLog(path, tensorboard=folder)
    log.append(row(100, frames_per_s=7))
    size = max(file.stat().st_size for file in folder.iterdir())
    no_room(size + 10)
    log.append(row(101, frames_per_s=8))  # progress.csv is smaller
    no_room(10_000_000)
    for frames in range(102, 150):  # more than any queue would hold
        log.append(row(frames, frames_per_s=9))
    log.close()
    assert [record.getMessage() for record in caplog.records] == [
        "no more TensorBoard events: [Errno 27] File too large; progress.csv has all rows"
    ]
    assert len(list(folder.iterdir())) == 1
    assert len(read_progress(path)["frames"]) == 50


def test_a_row_that_cannot_be_written_is_no_secret(
    path: Path, no_room: Callable[[int], None]
) -> None:
    log = ProgressLog(path)
    log.append(row(100))
    no_room(path.stat().st_size + 10)
    with pytest.raises(OSError, match="File too large"):
        log.append(row(101))
    no_room(10_000_000)
    log = ProgressLog(path)
    log.append(row(101))
    log.close()
    assert frames_in(path) == [100, 101]


def test_episodes_average_the_last_window() -> None:
    episodes = Episodes(window=3)
    assert math.isnan(episodes.mean)
    episodes.add([10.0, 1.0])
    episodes.add([])
    episodes.add(np.array([[2.0, 6.0]]))
    assert episodes.mean == 3.0
    assert episodes.count == 4


def test_episodes_refuse_what_is_not_finite() -> None:
    episodes = Episodes()
    with pytest.raises(ValueError, match="finite"):
        episodes.add([1.0, math.nan])
    assert episodes.count == 0


@given(
    before=st.lists(st.floats(-1e6, 1e6), max_size=12),
    after=st.lists(st.floats(-1e6, 1e6), max_size=12),
)
def test_episodes_go_on_after_a_restore(before: list[float], after: list[float]) -> None:
    straight, stopped, resumed = Episodes(5), Episodes(5), Episodes(5)
    straight.add(before)
    stopped.add(before)
    resumed.restore(stopped.state())
    for episodes in (straight, resumed):
        episodes.add(after)
    assert resumed.count == straight.count
    np.testing.assert_equal(resumed.mean, straight.mean)
    np.testing.assert_array_equal(resumed.state()["returns"], straight.state()["returns"])


def test_a_restored_window_may_shrink_and_grow() -> None:
    wide, narrow = Episodes(4), Episodes(2)
    wide.add([1, 2, 3, 4, 5])
    narrow.restore(wide.state())
    assert (narrow.mean, narrow.count) == (4.5, 5)
    wide.restore(narrow.state())
    wide.add([6])
    assert wide.mean == 5.0


@pytest.mark.parametrize(
    "state",
    [
        {"count": np.array([1]), "returns": np.zeros(3)},
        {"count": np.array(1.0), "returns": np.zeros(1)},
        {"count": np.array(1), "returns": np.zeros((1, 1))},
        {"count": np.array(1), "returns": np.zeros(2)},
        {"count": np.array(1), "returns": np.array([np.inf])},
    ],
)
def test_a_wrong_state_is_refused(state: dict[str, np.ndarray]) -> None:
    episodes = Episodes()
    episodes.add([7.0])
    with pytest.raises(ValueError, match="state"):
        episodes.restore(state)
    assert episodes.mean == 7.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_rate() -> None:
    clock = Clock()
    meter = Rate(clock)
    meter.add(30)
    clock.now += 2
    meter.add(10)
    assert meter.take() == 20
    assert math.isnan(meter.take())
    clock.now += 1
    assert meter.take() == 0


def test_share() -> None:
    meter = Share()
    assert math.isnan(meter.take())
    meter.add(1, 10)
    meter.add(2, 2)
    assert meter.take() == 0.25
    meter.add(3, 2)  # clocks of two ranks may differ by a little
    assert meter.take() == 1


def test_lag() -> None:
    meter = Lag()
    assert all(map(math.isnan, meter.take()))
    meter.add([])
    meter.add([2, 6])
    meter.add(1)
    assert meter.take() == (3.0, 6.0)
    meter.add(0)
    assert meter.take() == (0.0, 0.0)


def test_a_row_of_metrics() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    clock.now += 4
    metrics.episodes.add([-21, -19])
    metrics.policy_lag.add([1, 3])
    metrics.actor_wait.add(1, 4)
    metrics.learner_wait.add(2, 4)
    values = metrics.row(frames=800, steps=200, updates=5, version=6)
    assert tuple(values) == COLUMNS
    assert list(values.values()) == [4, 800, 200, 5, 6, 2, -20, 200, 2, 3, 0.25, 0.5]
    clock.now += 1
    assert metrics.row(frames=900, steps=225, updates=6, version=7)["frames_per_s"] == 100


def test_metrics_go_on_after_a_restore() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    clock.now += 4
    metrics.episodes.add([-21])
    state = metrics.state()
    clock.now += 3600  # the gap between the runs counts for nothing
    resumed = Metrics(clock)
    clock.now += 100
    resumed.restore(state, frames=800)
    clock.now += 2
    values = resumed.row(frames=1000, steps=250, updates=7, version=8)
    assert (values["time_s"], values["frames_per_s"], values["return_mean"]) == (6, 100, -21)
