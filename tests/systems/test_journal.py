"""The journal: the wish to stop, when to save, and curves that go on where they were."""

import json
import os
import signal

import numpy as np
import pytest

from drl_mpi.roles.info import Summary
from drl_mpi.run.checkpoint import load
from drl_mpi.run.counting import Counting
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.metrics import read_progress
from drl_mpi.systems.journal import LOG_EVERY_S, LOOK_EVERY_S, RunJournal

SCALARS = {"policy_loss": 1.0, "value_loss": 2.0, "entropy": 3.0, "gradient_norm": 4.0}


@pytest.fixture(autouse=True)
def _restore_signals():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


def summary(returns=()):
    return Summary(
        save=False, stop=False, lag_sum=6.0, lag_count=2, lag_max=5.0, actor_waited_s=1.0,
        actor_worked_s=3.0, learner_waited_s=1.0, learner_worked_s=1.0, episodes=len(returns),
        returns=np.array(returns, np.float32),
    )  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """make(version, steps, ...) -> (journal, clock): one process of a run in one folder."""

    def run(version=0, steps=0, *, max_minutes=0.0, checkpoint_minutes=5.0, state=None, restarts=0):
        folder, clock = RunFolder(tmp_path), Clock()
        folder.prepare()
        journal = RunJournal(
            folder, {"env": "x"}, Counting(10, 4, version, steps), total_frames=10_000,
            learning_rate=lambda v: 1.0 / (1 + v), checkpoint_minutes=checkpoint_minutes,
            max_minutes=max_minutes, restarts=restarts, clock=clock,
        )  # fmt: skip
        journal.restore(state)
        return journal, clock

    return run


def tree(version):
    return {
        "model": {"w": np.full(2, version, np.float32)},
        "optimizer": {},
        "counters": {"version": version, "optimizer_steps": version},
    }


SOURCES = [{"rng": {"2": np.arange(6, dtype=np.uint64)}}]


def play(journal, clock, versions, seconds=LOG_EVERY_S + 1, returns=()):
    for version in versions:
        clock.now += seconds
        journal.update(version, summary(returns), SCALARS)


def test_stop_is_seen_but_not_looked_for_all_the_time(make, tmp_path):
    journal, clock = make()
    assert journal.wishes() == (False, False)
    (tmp_path / "STOP").touch()
    clock.now += LOOK_EVERY_S / 2
    assert journal.wishes() == (False, False)
    clock.now += LOOK_EVERY_S
    assert journal.wishes() == (False, True)
    assert not journal.out_of_time


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_is_a_wish_to_stop(make, number):
    journal, _ = make()
    os.kill(os.getpid(), number)
    assert journal.wishes() == (False, True)


def test_time_for_a_checkpoint(make):
    journal, clock = make(checkpoint_minutes=2.0)
    clock.now += 119.0
    assert journal.wishes() == (False, False)
    clock.now += 1.0
    assert journal.wishes() == (True, False)
    journal.save(1, tree(1), SOURCES)
    assert journal.wishes() == (False, False)
    clock.now += 120.0
    assert journal.wishes() == (True, False)


def test_out_of_time_counts_earlier_runs(make, tmp_path):
    journal, clock = make(max_minutes=2.0)
    clock.now += 100.0
    assert journal.wishes() == (False, False)
    journal.save(1, tree(1), SOURCES)
    stored = load(next((tmp_path / "checkpoints").glob("*.h5")))
    state = {**stored["metrics"], "time_s": stored["session"]["time_s"]}
    journal, clock = make(1, 10, max_minutes=2.0, state=state)
    clock.now += 19.0
    assert journal.wishes()[1] is False
    clock.now += 1.5
    assert journal.wishes()[1] is True
    assert journal.out_of_time


def test_rows_hold_counts_and_means(make, tmp_path):
    journal, clock = make()
    clock.now += 1.0
    journal.update(1, summary([3.0]), {**SCALARS, "entropy": 5.0})
    clock.now += LOG_EVERY_S
    journal.update(2, summary([5.0, 7.0]), SCALARS)
    got = {
        name: values.tolist() for name, values in read_progress(tmp_path / "progress.csv").items()
    }
    assert got["frames"] == [80.0]
    assert got["steps"] == [20.0]
    assert got["version"] == [2.0]
    assert got["episodes"] == [3.0]
    assert got["return_mean"] == [5.0]
    assert got["policy_lag_mean"] == [3.0]
    assert got["policy_lag_max"] == [5.0]
    assert got["actor_wait"] == [0.25]
    assert got["learner_wait"] == [0.5]
    assert got["entropy"] == [4.0]
    assert got["learning_rate"] == pytest.approx([1 / 3])
    assert got["frames_per_s"] == pytest.approx([80 / (LOG_EVERY_S + 1)])


def test_curves_continue_without_duplicate_or_lost_rows(make, tmp_path):
    journal, clock = make()
    play(journal, clock, [1, 2, 3], returns=[1.0])
    journal.save(3, tree(3), SOURCES)
    play(journal, clock, [4, 5], returns=[9.0])  # lost: this process dies without saving
    assert len(read_progress(tmp_path / "progress.csv")["frames"]) == 5
    stored = load(next((tmp_path / "checkpoints").glob("*.h5")))
    state = {**stored["metrics"], "time_s": stored["session"]["time_s"]}
    journal, clock = make(3, 30, state=state, restarts=1)
    play(journal, clock, [4, 5, 6], returns=[2.0])
    journal.save(6, tree(6), SOURCES)
    journal.finish(True)
    rows = read_progress(tmp_path / "progress.csv")
    assert rows["frames"].tolist() == [40.0 * v for v in range(1, 7)]
    assert rows["episodes"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert rows["return_mean"][-1] == pytest.approx(1.5)
    assert (np.diff(rows["time_s"]) > 0).all()
    text = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(text) == 7  # a header and six rows
    assert text[0].count("frames,steps") == 1


def test_a_fresh_start_drops_rows_of_nobody(make, tmp_path):
    journal, clock = make()
    play(journal, clock, [1, 2])  # died before its first checkpoint
    make()
    assert len(read_progress(tmp_path / "progress.csv")["frames"]) == 0


def test_a_checkpoint_has_what_a_resume_needs(make, tmp_path):
    journal, clock = make(restarts=4)
    play(journal, clock, [1, 2])
    sources = [
        {"rng": {"1": np.arange(6, dtype=np.uint64)}, "replay": {"next": 3}},
        {"rng": {"2": np.ones(6, np.uint64)}},
        {"rng": {}, "replay": {"next": 5}},
    ]
    state = tree(2)
    journal.save(2, state, sources)
    assert set(state) == {"model", "optimizer", "counters"}  # the learner's, not changed
    got = load(tmp_path / "checkpoints" / "frames-000000000080.h5")
    assert json.loads(str(got["config"])) == {"env": "x"}
    counters = {name: int(number) for name, number in got["counters"].items()}
    assert counters == {"version": 2, "optimizer_steps": 2, "updates": 2, "steps": 20, "frames": 80}
    assert int(got["session"]["restarts"]) == 4
    assert set(got["rng"]) == {"1", "2"}
    assert {i: int(replay["next"]) for i, replay in got["replay"].items()} == {"0": 3, "2": 5}
    assert read_progress(tmp_path / "progress.csv")["frames"][-1] == 80.0  # a row at the same count


@pytest.mark.parametrize("complete", [True, False])
def test_done_is_written_only_when_complete(make, tmp_path, complete):
    journal, clock = make()
    play(journal, clock, [1])
    journal.save(1, tree(1), SOURCES)
    journal.finish(complete)
    assert (tmp_path / "DONE").exists() == complete
    if complete:
        done = json.loads((tmp_path / "DONE").read_text())
        assert done["frames"] == 40
        assert done["checkpoint"].endswith("frames-000000000040.h5")
