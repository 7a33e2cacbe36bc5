"""A run that goes freely: stopping, going on, ending, and going further."""

import json
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from drl_mpi.run.checkpoint import load

pytestmark = pytest.mark.smoke

FOREVER = "--total-frames 1e9"


def counters(folder):
    newest = max((folder / "checkpoints").glob("*.h5"))
    state = load(newest)
    return {
        name: int(value)
        for name, value in {**state["counters"], "restarts": state["session"]["restarts"]}.items()
    }


@pytest.fixture(scope="module")
def story(start, tiny, tmp_path_factory):
    """One folder's life; the tests below tell its chapters."""
    cwd = tmp_path_factory.mktemp("story")
    told = SimpleNamespace()

    told.stopped = start(f"{tiny} {FOREVER}", cwd)
    told.stopped.until_learning()
    told.folder = told.stopped.folder
    (told.folder / "STOP").touch()
    told.stopped.wait()
    told.at_stop = counters(told.folder)

    told.interrupted = start(f"{tiny} {FOREVER} --resume auto", cwd)
    told.interrupted.until_learning()
    told.interrupted.process.send_signal(signal.SIGINT)
    told.interrupted.wait()
    told.at_interrupt = counters(told.folder)

    total = told.at_interrupt["frames"] + 2000
    told.finished = start(f"{tiny} --total-frames {total}", cwd, 2).wait()
    told.at_finish = counters(told.folder)
    told.done = json.loads((told.folder / "DONE").read_text())

    told.again = start(f"{tiny} --total-frames {total}", cwd).wait()
    told.at_again = counters(told.folder)

    told.raised = start(f"{tiny} --total-frames {total + 3000}", cwd, 2).wait()
    told.at_raise = counters(told.folder)

    told.over = start(f"{tiny} {FOREVER} --max-minutes 0.001", cwd, 2).wait()
    told.timed = start(f"{tiny} {FOREVER} --max-minutes 0.01 --run-dir timed", cwd, 2).wait()
    return told


def test_stop_saves_and_exits_75(story):
    run = story.stopped
    assert run.rc == 75, run.text
    path = re.search(r"stopped early: saved (\S+\.h5)", run.stdout)
    assert path, run.text
    assert (run.cwd / path[1]).name == f"frames-{story.at_stop['frames']:012d}.h5"


def test_ctrl_c_saves_and_exits_75(story):
    run = story.interrupted
    assert run.rc == 75, run.text
    assert "stopped early: saved" in run.stdout
    assert "Traceback" not in run.stderr


def test_resume_goes_on(story):
    assert 0 < story.at_stop["frames"] < story.at_interrupt["frames"] < story.at_finish["frames"]
    assert story.at_stop["restarts"] == 0
    assert story.at_interrupt["restarts"] == 1
    assert story.at_finish["restarts"] == 2


def test_a_complete_run_is_done(story):
    run = story.finished
    assert run.rc == 0, run.text
    assert story.done["frames"] == story.at_finish["frames"] >= story.at_interrupt["frames"] + 2000


def test_a_finished_folder_says_so_and_is_left_alone(story):
    run = story.again
    assert run.rc == 0, run.text
    assert "is finished" in run.stdout
    assert "mpirun" not in run.stderr
    assert story.at_again == story.at_finish


def test_more_frames_go_on(story):
    assert story.raised.rc == 0, story.raised.text
    assert story.at_raise["frames"] >= story.at_finish["frames"] + 3000
    assert story.at_raise["restarts"] == 3


def test_the_time_limit_ends_a_run_with_success(story):
    assert story.over.rc == 0, story.over.text
    assert "run is finished: " in story.over.stdout
    assert story.timed.rc == 0, story.timed.text
    assert ", the end of --max-minutes 0.01, " in story.timed.stdout, story.timed.text
    assert (story.timed.cwd / "timed" / "DONE").exists()


def test_the_curves_are_one_line(story, progress):
    rows = progress(story.folder)
    assert all(np.diff(rows["frames"]) > 0), rows["frames"]
    assert all(np.diff(rows["time_s"]) > 0), rows["time_s"]
    assert all(np.diff(rows["episodes"]) >= 0), rows["episodes"]
    assert max(rows["policy_lag_max"]) > 0, "free actors are behind the learner"
    assert np.all(np.array(rows["policy_lag_mean"]) <= rows["policy_lag_max"])


def test_ctrl_c_while_the_ranks_still_start_is_not_lost(start, tiny, tmp_path):
    run = start(f"{tiny} {FOREVER}", tmp_path)
    run.until(lambda: "mpirun" in run.stderr, "relaunch")
    run.process.send_signal(signal.SIGINT)
    assert run.wait(60).rc == 75, run.text
    assert "stopped early: saved" in run.stdout


def test_resume_none_starts_in_a_fresh_folder_and_refuses_a_used_one(start, tiny, tmp_path):
    options = f"{tiny} --total-frames 200 --resume none"
    first = start(options, tmp_path).wait()
    assert first.rc == 0, first.text
    second = start(options, tmp_path).wait()
    assert second.rc == 2, second.text
    assert second.stderr.startswith("impala.py: --resume none")
    assert second.stderr.count("\n") == 1


def test_ctrl_c_before_there_are_ranks_ends_it_without_a_word(tmp_path):
    words = (
        "import signal\nfrom drl_mpi.run import launch\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # not so in a shell's &
        "from drl_mpi.systems.impala import PRESETS\n"
        "launch.launched_ranks = lambda: [signal.raise_signal(signal.SIGINT), exit(3)]\n"
        "launch.main(PRESETS, [])"
    )
    run = subprocess.run(
        [sys.executable, "-c", words], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (-signal.SIGINT, b"", b"")
    assert not list(tmp_path.iterdir())
