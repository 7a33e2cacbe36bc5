"""In lock-step these systems, too, have one result, whichever rank is killed on the way."""

from dataclasses import dataclass

import numpy as np
import pytest

from drl_mpi.run.checkpoint import load
from drl_mpi.systems import a3c, dqn, gorilla

COMMON = "--env CartPole-v1 --net mlp --precision fp32 --lockstep --envs-per-actor 4 --run-dir run"
WORKERS = f"{COMMON} --learners 2 --servers 2"
SHORT = "--unroll-length 5 --optimizer rmsprop"
REPLAY = (
    "--unroll-length 4 --replay-start 160 --replay-capacity 1000 --checkpoint-unrolls 10 "
    "--total-frames 3000 --target-period 70"
)
COLUMNS = {job.name: job.columns for job in (a3c.A3C, dqn.DQN, gorilla.Gorilla)}


@dataclass(frozen=True)
class Variant:
    """A system, and what happens to it: ranks that kill -9 hits, one after the other, or STOP."""

    job: str
    roles: str
    """Of the ranks, by their first letters."""
    options: str
    hits: tuple[int | str, ...]
    kept: str
    """What each learner keeps in its own part of the checkpoint, among others."""


VARIANTS = {
    "a3c": Variant(
        "a3c", "llss", f"{WORKERS} {SHORT} --checkpoint-unrolls 15 --total-frames 3000",
        (3,), "outliers/seen",
    ),
    "a3c-lstm": Variant(
        "a3c", "llss", f"{WORKERS} {SHORT} --core lstm --checkpoint-unrolls 15 --total-frames 4000",
        (1, "STOP"), "outliers/seen",
    ),
    "gorilla-bundled": Variant(
        "gorilla", "llss", f"{WORKERS} --bundled {REPLAY}", (2, 1), "replay/rows/frames",
    ),
    "gorilla-global": Variant(
        "gorilla", "llaass", f"{WORKERS} --replay global --actors 2 --replay-priority 0.6 {REPLAY}",
        (3, 0, "STOP"), "replay/priorities",
    ),
    "dqn": Variant(
        "dqn", "laa", f"{COMMON} --actors 2 {REPLAY}", (2, "STOP"), "loss/target/head.q.weight",
    ),
}  # fmt: skip

ALL = [pytest.param(name, marks=pytest.mark.slow if name == "a3c" else ()) for name in VARIANTS]


@pytest.fixture(scope="module")
def reference(start, tmp_path_factory):
    """Name of a variant -> a run that nothing happened to, started by itself."""
    runs = {}

    def run(name):
        if name not in runs:
            variant = VARIANTS[name]
            cwd = tmp_path_factory.mktemp(name)
            runs[name] = start(variant.options, cwd, job=variant.job).wait()
            assert runs[name].rc == 0, runs[name].text
        return runs[name]

    return run


@pytest.mark.parametrize("name", ALL)
def test_an_interrupted_run_reaches_the_same_bits(name, reference, start, tmp_path, bits, progress):
    variant = VARIANTS[name]
    expected = bits(reference(name).folder)
    for how in variant.hits:
        run = start(variant.options, tmp_path, len(variant.roles), job=variant.job)
        run.until_saved()
        if how == "STOP":
            (run.folder / "STOP").touch()
            assert run.wait().rc == 75, run.text
        else:
            run.rank(how).kill()
            assert run.wait(60).rc not in (0, 2, 75), run.text
        assert not (run.folder / "DONE").exists(), "too late: the run had ended by itself"
    last = start(variant.options, tmp_path, len(variant.roles), job=variant.job).wait()
    assert last.rc == 0, last.text
    assert (last.folder / "DONE").exists()
    found = bits(last.folder)
    assert found.keys() == expected.keys()
    assert [key for key in found if found[key] != expected[key]] == []
    for learner in range(variant.roles.count("l")):
        assert f"learner-{learner}.h5/{variant.kept}" in found
    state = load(max((last.folder / "checkpoints").glob("*.h5")))
    assert state["session"]["restarts"] == len(variant.hits)
    rows = progress(last.folder)
    assert all(np.diff(rows["frames"]) > 0), rows["frames"]
    assert all(np.diff(rows["time_s"]) > 0), rows["time_s"]


@pytest.mark.parametrize("name", ALL)
def test_a_run_leaves_its_layout_its_curves_and_done(name, reference, progress):
    variant, folder = VARIANTS[name], reference(name).folder
    _, *lines = (folder / "layout.txt").read_text().splitlines()
    assert "".join(line.split()[1][0] for line in lines) == variant.roles
    assert reference(name).stdout.startswith((folder / "layout.txt").read_text().rstrip())
    assert (folder / "DONE").exists()
    assert len(list((folder / "logs").iterdir())) == len(variant.roles)

    rows = progress(folder)
    assert set(COLUMNS[variant.job]) <= set(rows)
    last = {column: values[-1] for column, values in rows.items()}
    largest = {column: np.nanmax(values) for column, values in rows.items()}  # NaN: warming up
    assert last["frames"] == last["steps"] >= 3000
    assert last["episodes"] > 0
    assert last["return_mean"] > 8
    assert last["gradient_norm"] > 0
    if variant.job == "a3c":
        assert largest["policy_lag_max"] == 0, "workers act with what they then differentiate"
        assert 0 < last["entropy"] < 0.7
        assert last["value_loss"] > 0
    else:
        assert last["q_loss"] > 0
        assert 0.98 < last["exploration"] < 1
        assert last["replay_size"] == 1000
        assert 0 < last["replay_age"] < 1000
        assert 70 <= last["target_version"] <= last["version"]
    if "s" in variant.roles:
        assert largest["staleness_max"] == 1, "two learners push in turn"
        assert 0.5 < largest["staleness_mean"] <= 1
        assert largest["stale_rate"] == 0
        histogram = sum(last[column] for column in rows if column[10:].isdecimal())
        assert histogram == pytest.approx(1)
        assert 0 <= last["outlier_rate"] < 0.5


@pytest.mark.slow
def test_another_seed_gives_other_bits(reference, start, tmp_path, bits):
    variant = VARIANTS["dqn"]
    other = start(f"{variant.options} --seed 2", tmp_path, 3, job="dqn").wait()
    ours, theirs = bits(other.folder), bits(reference("dqn").folder)
    assert ours.keys() == theirs.keys()
    same = {key for key in ours if ours[key] == theirs[key]}
    assert not {key for key in same if key.startswith(("model/", "learner-0.h5/replay/rows/fr"))}


def test_a_complete_run_that_lost_its_done_is_completed(reference, start, bits):
    """Killed between the last checkpoint and DONE: there is nothing left to learn."""
    variant, run = VARIANTS["gorilla-bundled"], reference("gorilla-bundled")
    before = bits(run.folder)
    (run.folder / "DONE").unlink()
    again = start(variant.options, run.cwd, len(variant.roles), job=variant.job).wait()
    assert again.rc == 0, again.text
    assert (again.folder / "DONE").exists()
    assert bits(again.folder) == before
