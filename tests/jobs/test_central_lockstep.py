"""In lock-step central acting, too, has one result, whichever rank is killed on the way."""

from dataclasses import dataclass

import numpy as np
import pytest

from drl_mpi.run.checkpoint import load

COMMON = (
    "--env CartPole-v1 --net mlp --precision fp32 --lockstep --unroll-length 5 --envs-per-actor 4 "
    "--run-dir run"
)
GA3C = f"{COMMON} --actors 2 --batch-size 4"
IMPALA = f"{COMMON} --acting central --batch-size 4"


@dataclass(frozen=True)
class Variant:
    """A system, and what happens to it: ranks that kill -9 hits, one after the other, or STOP."""

    job: str
    roles: str
    """Of the ranks, by their first letters."""
    options: str
    hits: tuple[int | str, ...]
    updates: int
    """In a round."""


VARIANTS = {
    "ga3c": Variant(
        "ga3c", "laa", f"{GA3C} --checkpoint-unrolls 20 --total-frames 4000", (0, "STOP"), 2
    ),
    "ga3c-lstm": Variant(
        "ga3c", "laa",
        f"{GA3C} --core lstm --groups 4 --predict-batch 3 --checkpoint-unrolls 15 "
        "--total-frames 3000",
        (2, 0), 2,
    ),
    "impala": Variant(
        "impala", "laa",
        f"{IMPALA} --actors 2 --replay-fraction 0.5 --replay-capacity 64 --core lstm "
        "--checkpoint-unrolls 15 --total-frames 3000",
        ("STOP", 1), 4,
    ),
    "two learners": Variant(
        "impala", "llaa",
        f"{IMPALA} --learners 2 --actors 2 --replay-fraction 0 --checkpoint-unrolls 20 "
        "--total-frames 4400",  # they compare their parameters at update 100
        (1, 3), 1,
    ),
}  # fmt: skip

ALL = [
    pytest.param(name, marks=pytest.mark.slow if name == "ga3c-lstm" else ()) for name in VARIANTS
]


@pytest.fixture(scope="module")
def reference(start, tmp_path_factory):
    """Name of a variant -> a run that nothing happened to, started by itself."""
    runs = {}

    def run(name):
        if name not in runs:
            variant = VARIANTS[name]
            cwd = tmp_path_factory.mktemp(name.replace(" ", "-"))
            runs[name] = start(variant.options, cwd, job=variant.job).wait()
            assert runs[name].rc == 0, runs[name].text
        return runs[name]

    return run


def differences(found, expected):
    assert found.keys() == expected.keys()
    return [key for key in found if found[key] != expected[key]]


def test_two_runs_give_the_same_bits(reference, start, tmp_path, bits):
    variant = VARIANTS["ga3c"]
    again = start(variant.options, tmp_path, len(variant.roles), job=variant.job).wait()
    assert again.rc == 0, again.text
    assert differences(bits(again.folder), bits(reference("ga3c").folder)) == []


def test_another_seed_gives_other_bits(reference, start, tmp_path, bits):
    other = start(f"{VARIANTS['ga3c'].options} --seed 2", tmp_path, 3, job="ga3c").wait()
    assert other.rc == 0, other.text
    changed = differences(bits(other.folder), bits(reference("ga3c").folder))
    weights = {key for key in bits(other.folder) if key.startswith("model/")}
    assert len(weights) > 4
    assert weights <= set(changed)


@pytest.mark.parametrize("name", ALL)
def test_an_interrupted_run_reaches_the_same_bits(name, reference, start, tmp_path, bits, progress):
    variant = VARIANTS[name]
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
    assert differences(found, bits(reference(name).folder)) == []
    replayed = "learner-0.h5/replay/rows/frames" in found
    assert replayed == ("--replay-capacity" in variant.options), "the replay is compared, too"
    state = load(max((last.folder / "checkpoints").glob("*.h5")))
    assert state["session"]["restarts"] == len(variant.hits)
    rows = progress(last.folder)
    assert all(np.diff(rows["frames"]) > 0), rows["frames"]
    assert all(np.diff(rows["time_s"]) > 0), rows["time_s"]
    # All act with the version of the round; later updates of the round see it grow old.
    assert max(rows["policy_lag_max"]) == variant.updates - 1
    assert np.nanmax(rows["unroll_lag_max"]) == 0, "no version comes inside an unroll"
    assert np.nanmax(rows["trainers"]) == np.nanmax(rows["predictors"]) == 1


@pytest.mark.parametrize("name", ALL)
def test_a_run_leaves_its_layout_and_done(name, reference, progress):
    variant, folder = VARIANTS[name], reference(name).folder
    _, *lines = (folder / "layout.txt").read_text().splitlines()
    assert "".join(line.split()[1][0] for line in lines) == variant.roles
    assert (folder / "DONE").exists()
    assert len(list((folder / "logs").iterdir())) == len(variant.roles)
    rows = progress(folder)
    assert rows["frames"][-1] == rows["steps"][-1] >= 3000
    assert rows["return_mean"][-1] > 8
    assert rows["gradient_norm"][-1] > 0
    assert 0 < rows["entropy"][-1] <= np.log(2) + 1e-6
