"""On the real thing: some unrolls of Pong, with the default network and arithmetic."""

import numpy as np
import pytest

from drl_mpi.run.checkpoint import load

COMMON = "--env ALE/Pong-v5 --envs-per-actor 2 --total-frames 1600 --log-seconds 0.5 --run-dir run"
REPLAY = "--unroll-length 4 --replay-start 32 --replay-capacity 200 --batch-size 8 --dueling"
RUNS = {
    "gorilla": ("gorilla", f"--learners 2 --actors 2 --servers 1 {REPLAY}"),
    "a3c": ("a3c", "--learners 2 --servers 2 --unroll-length 5"),
    "a3c-lstm": ("a3c", "--learners 1 --servers 1 --unroll-length 5 --core lstm"),
}


def last(numbers):
    """The last number that there is: a last row may come right after the one before."""
    return [number for number in numbers if np.isfinite(number)][-1]


@pytest.mark.parametrize(
    "name", ["gorilla", "a3c-lstm", pytest.param("a3c", marks=pytest.mark.slow)]
)
def test_pong(name, start, tmp_path, progress):
    job, options = RUNS[name]
    run = start(f"{COMMON} {options}", tmp_path, job=job).wait()
    assert run.rc == 0, run.text
    state = load(max((run.folder / "checkpoints").glob("*.h5")))
    assert all(np.isfinite(array).all() for array in state["model"].values())
    assert any(part.startswith("core.lstm") for part in state["model"]) == (name == "a3c-lstm")
    rows = progress(run.folder)
    assert rows["frames"][-1] >= 1600
    assert rows["frames"][-1] == 4 * rows["steps"][-1]
    assert last(rows["gradient_norm"]) > 0
    if job == "gorilla":
        assert "head.advantage.weight" in state["model"], "as --dueling says"
        assert 0 < last(rows["replay_size"]) <= 200
        # Trained 8 times on every step that came after the first 32 of each learner.
        expected = (rows["steps"][-1] - 2 * 32) * 8 / 8
        assert 0.5 * expected < rows["version"][-1] <= expected + 2 * 8, "but for outliers"
    else:
        assert rows["version"][-1] == rows["steps"][-1] / 10
        assert 0 < last(rows["entropy"]) <= np.log(6)
