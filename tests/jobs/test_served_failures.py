"""Runs that go freely on through stragglers and outliers, and end where nothing can be trusted."""

import re

import numpy as np
import pytest

from drl_mpi.run.checkpoint import load

COMMON = (
    "--env odd_envs:Odd-v0 --net mlp --precision fp32 --envs-per-actor 4 --learners 2 "
    "--servers 2 --reward-clip 0 --log-seconds 0.5 --run-dir run"
)
SHORT = "--unroll-length 5"
REPLAY = "--bundled --unroll-length 4 --replay-start 160 --replay-capacity 1000"


def odd(kind, rank, number):
    return {"DRL_TEST_ODD": f"{kind}:{rank}:{number}"}


def finite(folder):
    """Whether everything in the newest checkpoint's model and optimiser is."""
    state = load(max((folder / "checkpoints").glob("*.h5")))
    arrays = [*state["model"].values()]
    arrays += [array for slot in state["optimizer"].values() for array in slot.values()]
    return all(np.isfinite(array).all() for array in arrays)


def served(folder, rank):
    """What a server wrote down at its end: gradients applied, dropped, and from whom."""
    text = (folder / "logs" / f"rank-{rank}.log").read_text()
    words = re.search(r"(\d+) gradients applied, (\d+) dropped .* by rank: 0:(\d+) 1:(\d+)", text)
    return tuple(map(int, words.groups()))


def test_a_straggler_is_left_behind(start, tmp_path, progress):
    options = f"{COMMON} {SHORT} --max-staleness 2 --total-frames 8000"
    run = start(options, tmp_path, 4, odd("sleep", 1, 0.05), job="a3c").wait()
    assert run.rc == 0, run.text
    for server in (2, 3):
        applied, dropped, first, second = served(run.folder, server)
        assert applied + dropped == first + second
        assert first > 100 > second >= dropped > second / 2, "the straggler's, as good as all"
    rows = progress(run.folder)
    assert rows["frames"][-1] >= 8000
    assert np.nanmax(rows["stale_rate"]) > 0
    assert np.nanmax(rows["staleness_max"]) > 2
    assert rows["version"][-1] > 100


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        ("a3c", "inf"),
        ("gorilla", "large"),
        pytest.param("a3c", "nan", marks=pytest.mark.slow),
        pytest.param("a3c", "large", marks=pytest.mark.slow),
    ],
)
def test_odd_rewards_are_dropped_as_outliers(job, kind, start, tmp_path, progress):
    options, rare = f"{SHORT} --total-frames 20000", 600
    if job == "gorilla":
        options, rare = f"{REPLAY} --total-frames 8000", 400
    # Behind the filter's first 100 gradients, which pass untested.
    run = start(f"{COMMON} {options}", tmp_path, 4, odd(kind, 0, rare), job=job).wait()
    assert run.rc == 0, run.text
    assert (run.folder / "DONE").exists()
    assert finite(run.folder)
    rows = progress(run.folder)
    assert np.nanmax(rows["outlier_rate"]) > 0


def test_a_gradient_that_poisons_a_shard_ends_the_run(start, tmp_path):
    options = f"{COMMON} {SHORT} --total-frames 1e9"
    run = start(options, tmp_path, 4, odd("blind", 1, 60), job="a3c").wait()
    assert run.rc not in (0, 2, 75), run.text
    first, second, *_ = run.stderr.splitlines()
    assert first in ("rank 2 failed:", "rank 3 failed:"), run.text
    assert second.startswith("Traceback")
    said = re.search(r"PoisonedError: the gradient of rank 1 \(number (\d+) from there\)", run.text)
    assert said, run.text
    assert 12 <= int(said[1]) < 30, (
        "five steps per gradient; a game's last is not the environment's"
    )
