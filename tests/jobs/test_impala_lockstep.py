"""In lock-step a run has one result, whatever happens to it on the way."""

import numpy as np
import pytest

from drl_mpi.run.checkpoint import load

COLUMNS = [
    "time_s",
    "frames",
    "steps",
    "updates",
    "version",
    "episodes",
    "return_mean",
    "frames_per_s",
    "policy_lag_mean",
    "policy_lag_max",
    "actor_wait",
    "learner_wait",
]

VARIANTS = {
    "mlp": "--checkpoint-unrolls 100 --total-frames 15000",
    "lstm": "--core lstm --replay-fraction 0.5 --replay-capacity 64 --envs-per-actor 4 "
    "--checkpoint-unrolls 30 --total-frames 4000",
    "pong": "--env ALE/Pong-v5 --net auto --precision bf16 --checkpoint-unrolls 10 "
    "--total-frames 4000",
}
RANKS = 2
"""Of all variants."""
UPDATES_PER_ROUND = {"mlp": 1, "lstm": 2, "pong": 1}


@pytest.fixture(scope="module")
def reference(start, tiny, tmp_path_factory):
    """Variant -> the folder of a run that nothing happened to, started by itself."""
    folders = {}

    def run(variant):
        if variant not in folders:
            cwd = tmp_path_factory.mktemp(f"reference-{variant}")
            options = f"{tiny} --lockstep {VARIANTS[variant]}"
            done = start(options, cwd).wait()
            assert done.rc == 0, done.text
            folders[variant] = done.folder
        return folders[variant]

    return run


def test_two_runs_give_the_same_bits(reference, start, tiny, tmp_path, bits):
    again = start(f"{tiny} --lockstep {VARIANTS['mlp']}", tmp_path, RANKS).wait()
    assert again.rc == 0, again.text
    assert bits(again.folder) == bits(reference("mlp"))


def test_another_seed_gives_other_bits(reference, start, tiny, tmp_path, bits):
    other = start(f"{tiny} --lockstep {VARIANTS['mlp']} --seed 2", tmp_path, RANKS).wait()
    assert other.rc == 0, other.text
    ours, theirs = bits(other.folder), bits(reference("mlp"))
    assert ours.keys() == theirs.keys()
    assert any(ours[name] != theirs[name] for name in ours if name.startswith("model/"))


@pytest.mark.parametrize(("variant", "how"), [("mlp", 0), ("pong", 1), ("lstm", "STOP")], ids=str)
def test_an_interrupted_run_reaches_the_same_bits(
    variant, how, reference, start, tiny, tmp_path, bits, progress
):
    """``how``: the rank that kill -9 hits, or STOP."""
    options = f"{tiny} --lockstep {VARIANTS[variant]}"
    first = start(options, tmp_path, RANKS)
    first.until_saved()
    if how == "STOP":
        (first.folder / "STOP").touch()
        assert first.wait().rc == 75, first.text
    else:
        first.rank(how).kill()
        assert first.wait(60).rc not in (0, 2, 75), first.text
    assert not (first.folder / "DONE").exists(), "too late: the run had ended by itself"
    second = start(options, tmp_path, RANKS).wait()
    assert second.rc == 0, second.text
    assert (second.folder / "DONE").exists()
    assert bits(second.folder) == bits(reference(variant))
    replayed = "learner-0.h5/replay/rows/frames" in bits(second.folder)
    assert replayed == ("--replay-capacity" in VARIANTS[variant]), "the replay is compared, too"
    state = load(max((second.folder / "checkpoints").glob("*.h5")))
    assert state["session"]["restarts"] == 1
    rows = progress(second.folder)
    assert list(rows)[: len(COLUMNS)] == COLUMNS
    assert all(np.diff(rows["frames"]) > 0), rows["frames"]
    assert all(np.diff(rows["time_s"]) > 0), rows["time_s"]
    # Actors act with the version of the round; later updates of the round see it grow old.
    assert max(rows["policy_lag_max"]) == UPDATES_PER_ROUND[variant] - 1


def test_a_damaged_replay_costs_a_checkpoint_and_no_bit(reference, start, tiny, tmp_path, bits):
    """A learner's part of the newest checkpoint is cut off: the run goes back to the one before."""
    options = f"{tiny} --lockstep {VARIANTS['lstm']}"
    first = start(options, tmp_path, RANKS)
    first.until_saved(2)
    first.rank(0).kill()
    first.wait()
    assert not (first.folder / "DONE").exists(), "too late: the run had ended by itself"
    older, newest = sorted((first.folder / "checkpoints").glob("*.h5"))[-2:]
    part = next(newest.with_suffix(".parts").glob("learner-0-*.h5"))
    part.write_bytes(part.read_bytes()[:-1])
    second = start(options, tmp_path, RANKS).wait()
    assert second.rc == 0, second.text
    assert f"going on from {older.relative_to(tmp_path)}" in second.stdout, second.text
    assert f"part {part.relative_to(tmp_path)} is truncated" in second.stderr, second.text
    assert bits(second.folder) == bits(reference("lstm"))


def test_a_complete_run_that_lost_its_done_is_completed(start, tiny, tmp_path, bits):
    """Killed between the last checkpoint, which is not a boundary, and DONE."""
    options = f"{tiny} --lockstep --checkpoint-unrolls 4 --total-frames 200"
    first = start(options, tmp_path, RANKS).wait()
    assert first.rc == 0, first.text
    before = bits(first.folder)
    (first.folder / "DONE").unlink()
    second = start(options, tmp_path, RANKS).wait()
    assert second.rc == 0, second.text
    assert (second.folder / "DONE").exists()
    assert bits(second.folder) == before


def test_two_learners_make_the_update_of_one_with_twice_the_batch(start, tiny, tmp_path):
    """Under a direct mpirun. The learners themselves compare parameters every 100 updates."""
    same = f"{tiny} --env faulty_envs:Faulty-v0 --lockstep --total-frames 4400 --actors 2"
    seeds = tmp_path / "seeds"
    two = start(f"{same} --learners 2", tmp_path / "2", 4, {"DRL_TEST_SEEDS": str(seeds)}).wait()
    one = start(f"{same} --batch-size 8", tmp_path / "1", 3).wait()
    assert (two.rc, one.rc) == (0, 0), two.text + one.text
    states = [load(max((run.folder / "checkpoints").glob("*.h5"))) for run in (one, two)]
    a, b = (state["model"] for state in states)
    assert states[0]["counters"]["version"] == states[1]["counters"]["version"] == 110
    for name in a:
        assert np.allclose(a[name], b[name], rtol=1e-3, atol=1e-5), name
    drawn = [line.split()[1] for line in seeds.read_text().splitlines()]
    ranks = {line.split()[0] for line in seeds.read_text().splitlines()}
    assert ranks == {"2", "3"}
    assert len(drawn) == len(set(drawn)) == 2 * 2 * 4, "2 actors, 2 restarts, 4 environments"
