"""DQN alone in one rank, stopped, and going on with actors of their own."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from drl_mpi.run.checkpoint import load

COMMON = (
    "--env CartPole-v1 --net mlp --precision fp32 --envs-per-actor 4 --unroll-length 4 "
    "--replay-start 160 --replay-capacity 1000 --target-period 50 --log-seconds 0.5 --run-dir run"
)


def kept(folder):
    """The newest checkpoint, and the learner's part of it."""
    newest = max((folder / "checkpoints").glob("*.h5"))
    return load(newest), load(next((newest.with_suffix(".parts")).glob("learner-0-*.h5")))


@pytest.fixture(scope="module")
def story(start, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("dqn")
    told = SimpleNamespace()
    told.alone = start(f"{COMMON} --actors 0 --total-frames 1e9", cwd, job="dqn")
    told.folder = told.alone.folder
    told.alone.until(lambda: "updates" in told.alone.stdout.rpartition(" 0 updates")[2], "updates")
    (told.folder / "STOP").touch()
    told.alone.wait()
    told.at_stop = kept(told.folder)
    told.total = int(told.at_stop[0]["counters"]["frames"]) + 2000
    options = f"{COMMON} --actors 2 --total-frames {told.total}"
    told.finished = start(options, cwd, 3, job="dqn").wait()
    told.at_finish = kept(told.folder)
    return told


def test_alone_it_is_one_rank(story):
    assert story.alone.rc == 75, story.alone.text
    assert "mpirun -n 1 " in story.alone.stderr
    assert int(story.at_stop[0]["counters"]["version"]) > 0


def test_it_goes_on_with_actors(story):
    assert story.finished.rc == 0, story.finished.text
    assert "going on from" in story.finished.stdout
    assert json.loads((story.folder / "DONE").read_text())["frames"] >= story.total
    assert story.finished.stdout.count("actor") >= 2


def test_the_replay_and_the_target_network_go_on(story, progress):
    (before, part), (after, _) = story.at_stop, story.at_finish
    rows = len(part["replay"]["rows"]["actions"])
    assert rows >= 160
    assert 0 <= int(part["loss"]["version"]) <= int(before["counters"]["version"])
    # Nothing had to fill up again: every step that came was paid for with a quarter of an update.
    updates = int(after["counters"]["version"]) - int(before["counters"]["version"])
    steps = int(after["counters"]["steps"]) - int(before["counters"]["steps"])
    assert steps / 4 - 8 <= updates <= steps / 4 + 8
    told = {name: np.array(column) for name, column in progress(story.folder).items()}
    assert all(np.diff(told["frames"]) > 0)
    went_on = told["frames"] > int(before["counters"]["frames"])
    assert min(told["replay_size"][went_on & np.isfinite(told["replay_size"])]) >= rows
