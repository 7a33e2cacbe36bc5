"""The command lines of DQN, Gorilla and A3C: one line for whatever cannot work."""

import io
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest

from drl_mpi.run import launch, relaunch
from drl_mpi.systems import a3c, dqn, gorilla

STARTED = 42
"""What the replaced launcher returns."""

PRESETS = {"a3c": a3c.PRESETS, "dqn": dqn.PRESETS, "gorilla": gorilla.PRESETS}
TINY = "--env CartPole-v1 --net mlp --envs-per-actor 4 --run-dir run"
LAYOUTS = {
    "a3c": "--learners 2 --servers 2",
    "dqn": "--actors 2",
    "gorilla": "--learners 2 --servers 2 --actors 2",
}


@pytest.fixture
def job(monkeypatch, tmp_path):
    """``job(name, options)``: up to the point where ranks would start; that is code 42."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(relaunch.StopSignals, "supervise", lambda *_, **__: STARTED)
    monkeypatch.setattr(launch, "launched_ranks", lambda: None)
    monkeypatch.setattr(relaunch.RunFolder, "is_done", lambda _self: False)

    def run(name, options):
        monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py"])
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            launch.main(PRESETS[name], [*TINY.split(), *options.split()])
        return SimpleNamespace(rc=end.value.code, stdout=out.getvalue(), stderr=err.getvalue())

    return run


@pytest.mark.parametrize("name", PRESETS)
def test_good_options_start(name, job):
    run = job(name, LAYOUTS[name])
    assert run.rc == STARTED, run


def test_bundled_learners_start(job):
    run = job("gorilla", "--bundled --learners 2 --servers 2")
    assert run.rc == STARTED, run


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("preset", ["small", "paper"])
def test_presets_are_checked_and_show_in_help(name, preset, job):
    PRESETS[name][preset].check()
    text = " ".join(job(name, f"--preset {preset} --help").stdout.split())
    assert "--preset small | paper" in text
    assert f"(default: {PRESETS[name][preset].learning_rate})" in text


RUN = "--unroll-length 4 --replay-start 160 --replay-capacity 1000"
LOCK = f"--lockstep {RUN}"
REFUSED = {
    ("dqn", "--learners 2"): "--learners 2: DQN has one",
    ("dqn", "--servers 2"): "--servers",
    ("dqn", "--core lstm"): "--core lstm: dqn replays single transitions",
    ("dqn", "--optimizer adagrad"): "'adam', 'rmsprop'",
    ("dqn", "--optimizer rmsprop --decay 1.5"): "decay",
    ("dqn", "--epsilon -1"): "optimiser's settings",
    ("dqn", "--replay-start 2000 --replay-capacity 1000"): "--replay-start 2000 is more than",
    ("dqn", "--actors 2 --replay-capacity 1003 --replay-start 1003"): "leaves room for 1000",
    ("dqn", "--actors 2 --replay-capacity 10 --replay-start 8"): "raise it to 40 or more",
    ("dqn", "--replay-capacity 1e10 --replay-start 10"): "GiB of its memory are at hand; at most",
    ("dqn", "--exploration-start 0.1 --exploration-end 0.5"): "swap them",
    ("dqn", "--replay-ratio 0"): "--replay-ratio is 0.0",
    ("dqn", "--replay-priority 1.1"): "--replay-priority is 1.1",
    ("dqn", "--n-steps 0"): "--n-steps is 0",
    ("dqn", "--target-period 0"): "--target-period is 0",
    ("dqn", f"{LOCK} --actors 2 --replay-ratio 7.3"): "that must be a whole number",
    ("dqn", f"{LOCK} --actors 2 --batch-size 512"): "for 0.5 updates",
    ("dqn", f"{LOCK} --actors 2 --replay-start 161"): "a multiple of 32",
    ("dqn", f"{LOCK} --actors 2 --replay-start 32 --n-steps 4"): "no 4-step transition",
    ("gorilla", "--core lstm --learners 1"): "--core lstm: gorilla replays",
    ("gorilla", "--bundled --actors 2"): "--bundled with --actors 2",
    ("gorilla", "--bundled --replay global"): "bundles keep what they make",
    ("gorilla", "--replay global --learners 3 --actors 3"): "evenly over 3 learners",
    ("gorilla", "--servers 0"): "--servers is 0",
    ("gorilla", "--servers 5000"): "--servers is 5000",
    ("gorilla", "--optimizer sgd"): "'adagrad'",
    ("gorilla", "--optimizer rmsprop --decay 1.5"): "decay",
    ("gorilla", "--epsilon 0"): "eps",
    ("gorilla", "--learners 2 --actors 1"): "every learner needs an actor",
    ("gorilla", f"{LOCK} --actors 1 --pull-every 2"): "leave --pull-every at 1",
    ("gorilla", f"{LOCK} --learners 2 --actors 3"): "spread evenly",
    ("gorilla", f"{LOCK} --bundled --unroll-length 3"): "a multiple of 12",
    ("a3c", "--actors 2"): "--actors 2: A3C's workers act for themselves",
    ("a3c", "--servers 0"): "--servers is 0",
    ("a3c", "--optimizer rmsprop --decay 1"): "decay",
    ("a3c", "--optimizer sgd"): "'adagrad'",
    ("a3c", "--max-staleness -1"): "--max-staleness is -1",
    ("a3c", "--outlier-threshold nan"): "--outlier-threshold is nan",
    ("a3c", "--entropy-cost -1"): "--entropy-cost is -1",
    ("a3c", "--replay-start 10"): "--replay-start",
}


@pytest.mark.parametrize(("name", "options"), REFUSED)
def test_what_cannot_work_is_refused_in_one_line(name, options, job, tmp_path):
    run = job(name, options)
    assert run.rc == 2, run
    assert run.stderr.startswith(f"{name}.py: "), run.stderr
    assert run.stderr.count("\n") == 1, run.stderr
    assert REFUSED[name, options] in run.stderr
    assert run.stdout == ""
    assert not list(tmp_path.iterdir()), "a refusal leaves no trace"


def test_a_replay_that_does_not_fit_is_told_what_fits(job):
    options = "--learners 2 --servers 1 --bundled --replay-start 10"
    said = job("gorilla", f"{options} --replay-capacity 1e10").stderr
    fits = int(re.search(r"at most (\d+) fit", said)[1])
    assert "in 2 learners" in said
    assert 0 < fits < 10**10
    assert job("gorilla", f"{options} --replay-capacity {fits * 9 // 10}").rc == STARTED
    assert job("gorilla", f"{options} --replay-capacity {fits * 11 // 10}").rc == 2


def test_refusals_under_mpirun_too(start, tmp_path):
    """Before anything else is done, and once."""
    run = start(f"{TINY} --learners 2 --servers 2", tmp_path, 3, job="a3c").wait()
    assert run.rc == 2, run.text
    assert run.stderr.startswith("a3c.py: "), run.text
    assert run.stderr.count("a3c.py: ") == 1, run.text
    assert "Traceback" not in run.stderr
    assert not run.folder.exists()
