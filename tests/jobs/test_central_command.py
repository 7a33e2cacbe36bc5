"""Central acting from the command line: GA3C, and IMPALA with ``--acting central``."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest

from drl_mpi.run import launch, relaunch
from drl_mpi.run.checkpoint import load
from drl_mpi.systems import ga3c, impala
from drl_mpi.systems.central import COLUMNS

STARTED = 42
"""What the replaced launcher returns."""
PRESETS = {"ga3c": ga3c.PRESETS, "impala": impala.PRESETS}
NAMES = {"ga3c": "", "impala": "--acting central"}
SHORT = "--unroll-length 5 --envs-per-actor 4"
POLE = f"--env CartPole-v1 --net mlp --precision fp32 {SHORT} --batch-size 4"
PONG = f"--env ALE/Pong-v5 {SHORT}"
ALONE = "--core lstm --groups 1"
LOGGED = "--log-seconds 0.2 --run-dir run"


@pytest.fixture
def job(monkeypatch, tmp_path):
    """``job(name, options)``: up to the point where ranks would start; that is code 42."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(relaunch.StopSignals, "supervise", lambda *_, **__: STARTED)
    monkeypatch.setattr(launch, "launched_ranks", lambda: None)

    def run(name, options):
        monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py"])
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            launch.main(PRESETS[name], f"{NAMES[name]} {POLE} --run-dir run {options}".split())
        return SimpleNamespace(rc=end.value.code, stdout=out.getvalue(), stderr=err.getvalue())

    return run


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_presets_are_checked_and_show_in_help(preset, job):
    PRESETS["ga3c"][preset].check()
    text = " ".join(job("ga3c", f"--preset {preset} --help").stdout.split())
    assert "--preset small | paper" in text
    assert f"(default: {PRESETS['ga3c'][preset].learning_rate})" in text
    assert "(Babaeizadeh et al. 2017: 3e-4 with rmsprop)" in text


REFUSED = {
    ("ga3c", "--groups 3"): "--envs-per-actor 4 cannot be cut into --groups 3",
    ("ga3c", "--learners 2"): "--learners 2: GA3C has one",
    ("ga3c", "--actors 0"): "GA3C's learner does not act",
    ("ga3c", "--tune maybe"): "--tune",
    ("ga3c", "--acting central"): "--acting",
    ("ga3c", "--lockstep --predictors 2"): "use --predictors 1 --trainers 1 --tune off",
    ("ga3c", "--lockstep --actors 2 --batch-size 6"): "--lockstep: the 8 environments",
    ("ga3c", "--min-probability 1"): "--min-probability is 1.0",
    ("impala", "--replay-fraction 0 --learners 2 --actors 2 --tune on"): "--tune on with 2 learn",
    ("impala", "--replay-fraction 0 --learners 2 --actors 2 --trainers 2"): "use --trainers 1",
    ("impala", "--predict-wait -1"): "--predict-wait is -1.0",
}


@pytest.mark.parametrize(("name", "options"), REFUSED)
def test_what_cannot_work_is_refused_in_one_line(name, options, job, tmp_path):
    run = job(name, options)
    assert run.rc == 2, run
    assert run.stderr.startswith(f"{name}.py: "), run.stderr
    assert run.stderr.count("\n") == 1, run.stderr
    assert REFUSED[name, options] in run.stderr
    assert not list(tmp_path.iterdir()), "a refusal leaves no trace"


RUNS = {
    # job, ranks of mpirun or None for a job that starts them itself, options, frames
    "ga3c": ("ga3c", None, f"{POLE} --actors 2", 3000),
    "ga3c, mpirun, lstm": ("ga3c", 4, f"{POLE} --core lstm --groups 4", 3000),
    "ga3c, Pong, mpirun": ("ga3c", 4, PONG, 4000),
    "impala, mpirun": ("impala", 4, f"--acting central {POLE}", 3000),
    "impala, Pong, lstm": (
        "impala", None, f"{PONG} --acting central --batch-size 8 --actors 1 {ALONE}", 4000,
    ),
    "two learners, mpirun": (
        "impala", 5, f"--acting central {POLE} --learners 2 --actors 3", 6000,
    ),
}  # fmt: skip
MARKED = {
    "ga3c, mpirun, lstm": pytest.mark.slow,
    "impala, Pong, lstm": pytest.mark.slow,
    "ga3c": pytest.mark.smoke,
    "two learners, mpirun": pytest.mark.smoke,
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKED.get(name, ())) for name in RUNS])
def test_it_runs(name, start, tmp_path, progress):
    job, ranks, options, frames = RUNS[name]
    pong = "Pong" in name
    run = start(f"{options} --total-frames {frames} {LOGGED}", tmp_path, ranks, job=job).wait()
    assert run.rc == 0, run.text
    assert (run.folder / "DONE").exists()
    state = load(max((run.folder / "checkpoints").glob("*.h5")))
    assert all(np.isfinite(array).all() for array in state["model"].values())
    assert any(part.startswith("core.lstm") for part in state["model"]) == ("lstm" in name)
    rows = progress(run.folder)
    assert {*PRESETS[job]["small"].columns, *COLUMNS} <= set(rows)
    last = {column: values[-1] for column, values in rows.items()}
    # NaN: nothing happened, as no game of Pong ends.
    most = {column: np.nanmax([0, *values]) for column, values in rows.items()}
    assert last["frames"] >= frames
    assert last["frames"] == (4 if pong else 1) * last["steps"]
    assert last["gradient_norm"] > 0
    assert 0 < last["entropy"] <= np.log(6 if pong else 2) + 1e-6
    assert np.isfinite([last["policy_loss"], last["value_loss"]]).all()
    assert most["pps"] > 0
    assert most["tps"] > 0
    group = 4 if ALONE in options else 1 if "--groups 4" in options else 2
    assert most["predict_batch_mean"] >= most["predict_batch_p10"] >= group
    assert most["request_wait_ms_p99"] >= most["request_wait_ms_p50"] > 0
    assert most["unroll_lag_max"] >= most["unroll_lag_mean"] >= 0
    assert most["predictors"] >= 1
    assert most["trainers"] >= 1
    if not pong:
        assert last["episodes"] > 0
        assert last["return_mean"] > 8


def test_actors_load_no_torch(start, tmp_path):
    """They hold no network: a machine may have as many as it has memory for environments."""
    run = start(f"{POLE} --total-frames 1e9 {LOGGED}", tmp_path, 3, job="ga3c")
    run.until(lambda: (run.folder / "progress.csv").exists(), "progress")
    for rank, loads in ((0, True), (1, False), (2, False)):
        maps = " ".join(each.path for each in run.rank(rank).memory_maps())
        assert ("libtorch" in maps) == loads, rank
        assert "libmpi" in maps, "this is a rank"
    (run.folder / "STOP").touch()
    assert run.wait().rc == 75, run.text


def test_threads_are_as_many_as_asked_and_may_be_others_in_the_next_run(start, tmp_path, progress):
    """So may groups: outside lock-step nothing of this is part of what a run is."""
    common = f"{POLE} --actors 2 --tune off --total-frames 1e9 {LOGGED}"
    first = start(f"{common} --predictors 2 --trainers 2", tmp_path, 3, job="ga3c")
    rows = first.folder / "progress.csv"
    first.until(lambda: rows.exists() and len(rows.read_text().splitlines()) > 3, "progress")
    (first.folder / "STOP").touch()
    assert first.wait().rc == 75, first.text
    before = progress(first.folder)
    assert set(before["predictors"]) == set(before["trainers"]) == {2}
    assert set(before["active_actors"]) == {2}
    assert set(before["settled"]) == {1}, "there is nothing to find out"
    frames = int(before["frames"][-1])

    common = common.replace("1e9", str(frames + 1500))
    second = start(f"{common} --groups 4 --predict-batch 3", tmp_path, job="ga3c").wait()
    assert second.rc == 0, second.text
    assert "going on from" in second.stdout
    after = progress(second.folder)
    assert after["frames"][-1] >= frames + 1500
    assert after["predictors"][-1] == after["trainers"][-1] == 1
    assert after["predict_batch_p90"][-1] <= 3
