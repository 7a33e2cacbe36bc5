"""The journal: the wish to stop, when to save, and curves that go on where they were."""

import json
import os
import signal

import numpy as np
import pytest

from drl_mpi.roles.info import Summary
from drl_mpi.run.checkpoint import load
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.launcher import STOP_SIGNALS, StopSignals
from drl_mpi.run.metrics import read_progress
from drl_mpi.systems.journal import LOG_EVERY_S, LOOK_EVERY_S, RunJournal

COLUMNS = ("policy_loss", "value_loss", "entropy", "replay_size")
SCALARS = {"policy_loss": 1.0, "value_loss": 2.0, "entropy": 3.0, "gradient_norm": 4.0}
STEPS = 10
"""Per update."""


@pytest.fixture(autouse=True)
def _restore_signals():
    numbers = STOP_SIGNALS
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
        lag_sum=6.0, lag_count=2, lag_max=5.0, actor_waited_s=1.0,
        actor_worked_s=3.0, learner_waited_s=1.0, learner_worked_s=1.0, episodes=len(returns),
        returns=np.array(returns, np.float32),
    )  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """make(steps, ...) -> (journal, clock): one process of a run in one folder."""

    def run(steps=0, *, max_minutes=0.0, checkpoint_minutes=5.0, state=None, restarts=0):
        folder, clock = RunFolder(tmp_path), Clock()
        folder.prepare()
        signals = StopSignals()
        signals.listen(*STOP_SIGNALS)
        journal = RunJournal(
            folder, signals, {"env": "x"}, COLUMNS, action_repeat=4, total_frames=10_000,
            checkpoint_minutes=checkpoint_minutes, max_minutes=max_minutes, restarts=restarts,
            clock=clock,
        )  # fmt: skip
        journal.restore(state, steps)
        return journal, clock

    return run


def tree(version):
    return {
        "model": {"w": np.full(2, version, np.float32)},
        "optimizer": {},
        "counters": {
            "version": version, "rounds": version, "steps": STEPS * version,
            "optimizer_steps": version,
        },
    }  # fmt: skip


LEARNERS = [{"rng": {"2": np.arange(6, dtype=np.uint64)}, "kept": ""}]


def note(journal, version, returns=(), scalars=SCALARS, gauges=None):
    """Update number ``version`` of a learner that consumes ``STEPS`` in each."""
    given = {"learning_rate": 1.0 / (1 + version), **(gauges or {})}
    journal.update(version, STEPS * version, summary(returns), scalars, lambda: given)


def play(journal, clock, versions, seconds=LOG_EVERY_S + 1, returns=()):
    for version in versions:
        clock.now += seconds
        note(journal, version, returns)


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
    journal.save(tree(1), LEARNERS)
    assert journal.wishes() == (False, False)
    clock.now += 120.0
    assert journal.wishes() == (True, False)


def test_out_of_time_counts_earlier_runs(make, tmp_path):
    journal, clock = make(max_minutes=2.0)
    clock.now += 100.0
    assert journal.wishes() == (False, False)
    journal.save(tree(1), LEARNERS)
    stored = load(next((tmp_path / "checkpoints").glob("*.h5")))
    state = {**stored["metrics"], "time_s": stored["session"]["time_s"]}
    journal, clock = make(10, max_minutes=2.0, state=state)
    clock.now += 19.0
    assert journal.wishes()[1] is False
    clock.now += 1.5
    assert journal.wishes()[1] is True
    assert journal.out_of_time


def test_rows_hold_counts_and_means(make, tmp_path):
    journal, clock = make()
    clock.now += 1.0
    note(journal, 1, [3.0], {**SCALARS, "entropy": 5.0})
    clock.now += LOG_EVERY_S
    note(journal, 2, [5.0, 7.0], gauges={"replay_size": 17.0})
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
    assert got["replay_size"] == [17.0]
    assert got["frames_per_s"] == pytest.approx([80 / (LOG_EVERY_S + 1)])


def test_curves_continue_without_duplicate_or_lost_rows(make, tmp_path):
    journal, clock = make()
    play(journal, clock, [1, 2, 3], returns=[1.0])
    journal.save(tree(3), LEARNERS)
    play(journal, clock, [4, 5], returns=[9.0])  # lost: this process dies without saving
    assert len(read_progress(tmp_path / "progress.csv")["frames"]) == 5
    stored = load(next((tmp_path / "checkpoints").glob("*.h5")))
    state = {**stored["metrics"], "time_s": stored["session"]["time_s"]}
    journal, clock = make(30, state=state, restarts=1)
    play(journal, clock, [4, 5, 6], returns=[2.0])
    journal.save(tree(6), LEARNERS)
    journal.finish(True)
    rows = read_progress(tmp_path / "progress.csv")
    assert rows["frames"].tolist() == [40.0 * v for v in range(1, 7)]
    assert rows["episodes"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert rows["return_mean"][-1] == pytest.approx(1.5)
    assert (np.diff(rows["time_s"]) > 0).all()
    text = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(text) == 7  # a header and six rows
    assert text[0].count("frames,steps") == 1


def test_means_are_over_the_updates_that_had_a_number(make, tmp_path):
    """Experience that came without an update, as while a replay fills, has no loss."""
    journal, clock = make()
    for version, scalars in ((1, {}), (2, SCALARS), (3, {}), (4, {**SCALARS, "entropy": 7.0})):
        clock.now += 3.0
        note(journal, version, scalars=scalars)
    clock.now += LOG_EVERY_S + 1
    note(journal, 5, scalars={})
    rows = read_progress(tmp_path / "progress.csv")
    assert rows["entropy"].tolist()[:1] == [5.0]
    assert rows["gradient_norm"].tolist()[:1] == [4.0]
    assert np.isnan(rows["entropy"][1])
    assert rows["learning_rate"][1] == pytest.approx(1 / 6)


def test_gauges_are_read_once_per_row_and_are_those_of_the_newest_update(make, tmp_path):
    """They are numbers since they were last read."""
    journal, clock = make()
    read = []

    def gauges(version):
        return lambda: read.append(version) or {"replay_size": version}

    for version in range(1, 8):
        clock.now += LOG_EVERY_S / 3 + 0.1
        journal.update(version, STEPS * version, summary(), {}, gauges(version))
    assert read == [3, 6]
    journal.save(tree(7), LEARNERS)
    journal.save(tree(7), LEARNERS)  # nothing new: no row
    assert read == [3, 6, 7]
    assert read_progress(tmp_path / "progress.csv")["replay_size"].tolist() == [3, 6, 7]


def test_a_checkpoint_counts_what_is_in_it(make, tmp_path):
    """Learners of servers know older counts than the servers that were read for it."""
    journal, clock = make()
    play(journal, clock, [1, 2])
    journal.save(tree(5), LEARNERS)
    assert int(load(tmp_path / "checkpoints" / "frames-000000000200.h5")["counters"]["steps"]) == 50
    journal.finish(True)
    assert json.loads((tmp_path / "DONE").read_text())["checkpoint"].endswith("0200.h5")


def test_a_fresh_start_drops_rows_of_nobody(make, tmp_path):
    journal, clock = make()
    play(journal, clock, [1, 2])  # died before its first checkpoint
    make()
    assert len(read_progress(tmp_path / "progress.csv")["frames"]) == 0


def test_a_checkpoint_has_what_a_resume_needs(make, tmp_path):
    journal, clock = make(restarts=4)
    play(journal, clock, [1, 2])
    learners = [
        {"rng": {"1": np.arange(6, dtype=np.uint64)}, "kept": "learner-0-2 " + "a" * 64},
        {"rng": {"2": np.ones(6, np.uint64)}, "kept": ""},
        {"rng": {}, "kept": "learner-2-2 " + "b" * 64},
    ]
    state = tree(2)
    journal.save(state, learners)
    assert set(state) == {"model", "optimizer", "counters"}  # the learner's, not changed
    got = load(tmp_path / "checkpoints" / "frames-000000000080.h5")
    assert json.loads(str(got["config"])) == {"env": "x"}
    counters = {name: int(number) for name, number in got["counters"].items()}
    assert counters == {
        "version": 2, "rounds": 2, "optimizer_steps": 2, "updates": 2, "steps": 20, "frames": 80
    }  # fmt: skip
    assert int(got["session"]["restarts"]) == 4
    assert set(got["rng"]) == {"1", "2"}
    assert got["parts"] == {"learner-0-2": "a" * 64, "learner-2-2": "b" * 64}
    assert read_progress(tmp_path / "progress.csv")["frames"][-1] == 80.0  # a row at the same count


@pytest.mark.parametrize("complete", [True, False])
def test_done_is_written_only_when_complete(make, tmp_path, complete):
    journal, clock = make()
    play(journal, clock, [1])
    journal.save(tree(1), LEARNERS)
    journal.finish(complete)
    assert (tmp_path / "DONE").exists() == complete
    if complete:
        done = json.loads((tmp_path / "DONE").read_text())
        assert done["frames"] == 40
        assert done["checkpoint"].endswith("frames-000000000040.h5")


def test_a_checkpoint_has_its_row_even_if_only_its_count_is_new(make, tmp_path):
    """As with parameter servers: what the last update consumed is counted when it is saved."""
    journal, clock = make()
    play(journal, clock, [1, 2])
    clock.now += 1.0
    journal.save(tree(3), LEARNERS)
    journal.finish(True)
    assert read_progress(tmp_path / "progress.csv")["frames"].tolist() == [40, 80, 120]
    assert json.loads((tmp_path / "DONE").read_text())["frames"] == 120
