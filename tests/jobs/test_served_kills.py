"""kill -9 at any moment, again and again: the run goes on from its last checkpoint, and completes.

DRL_MPI_TEST_KILLS=50 kills each run 50 times; DRL_MPI_TEST_SEED=7 at other moments. By default the
run with all roles is killed 4 times, others twice.
"""

import os
import random
import time

import pytest

KILLS = int(os.environ.get("DRL_MPI_TEST_KILLS", "0"))
SEED = int(os.environ.get("DRL_MPI_TEST_SEED", "1"))

COMMON = (
    "--env CartPole-v1 --net mlp --precision fp32 --envs-per-actor 6 --checkpoint-minutes 0.01 "
    "--run-dir run"
)
REPLAY = "--unroll-length 4 --replay-start 168 --replay-capacity 1200 --replay-priority 0.6"
RUNS = {
    "a3c": ("a3c", f"{COMMON} --unroll-length 5"),
    "gorilla-bundled": ("gorilla", f"{COMMON} --bundled {REPLAY}"),
    "gorilla-global": ("gorilla", f"{COMMON} --replay global {REPLAY}"),
}


def ranks_of(name, learners, servers, actors):
    """Options, and how many that makes."""
    options = f"--learners {learners} --servers {servers}"
    if name != "gorilla-global":
        return options, learners + servers
    return f"{options} --actors {actors}", learners + servers + actors


def newest(folder):
    """Frames of the newest checkpoint; 0 without one."""
    found = [int(path.stem.split("-")[1]) for path in (folder / "checkpoints").glob("frames-*.h5")]
    return max(found, default=0)


def went_on_from(run):
    """Frames of the checkpoint that a run says to have begun with; ``None`` if it says nothing.

    Nothing is ever passed over: a checkpoint that can be seen is whole.
    """
    assert "passed over" not in run.text, run.text
    words = run.stdout.partition("going on from ")[2].split()
    return int(words[0].rpartition("frames-")[2].removesuffix(".h5")) if words else None


def hit(run, rng):
    """Kills one process of the run, or all."""
    processes = run.alive()
    for victim in processes if rng.random() < 0.25 else rng.sample(processes, 1):
        victim.kill()


@pytest.mark.parametrize(
    "name", ["a3c", "gorilla-bundled", pytest.param("gorilla-global", marks=pytest.mark.slow)]
)
def test_it_resumes_whatever_is_killed_whenever(name, start, tmp_path, progress):
    job, options = RUNS[name]
    layout, ranks = ranks_of(name, 2, 2, 2)
    rng, folder, resumed = random.Random(SEED), tmp_path / "run", 0
    kills = KILLS or (4 if name == "gorilla-global" else 2)
    for number in range(kills):
        before = newest(folder)
        run = start(f"{options} {layout} --total-frames 1e9", tmp_path, ranks, job=job)
        if number % 4 < 3:  # mostly somewhere between two checkpoints, or within one
            run.until_saved()
            time.sleep(rng.uniform(0, 1.5))
        else:
            time.sleep(rng.uniform(0, 5))
        assert run.process.poll() is None, run.text
        hit(run, rng)
        assert run.wait(120).rc not in (0, 2, 75), run.text
        began, after = went_on_from(run), newest(folder)
        assert began == (before or None) or (began is None and after == before), run.text
        assert after >= before
        resumed += began is not None
    assert resumed or kills < 2
    before = newest(folder)
    total = before + 4000
    layout, ranks = ranks_of(name, 3, 1, 3)  # may change: a learner more has no replay yet
    run = start(f"{options} {layout} --total-frames {total}", tmp_path, ranks, job=job).wait()
    assert run.rc == 0, run.text
    assert went_on_from(run) == before, run.text
    assert (folder / "DONE").exists()
    assert newest(folder) >= total
    rows = progress(folder)["frames"]
    assert rows == sorted(set(rows)), rows
    temporary = [path.name for path in folder.rglob("*") if "tmp" in path.name]
    assert not temporary, temporary
