"""A rank that fails: the cause is seen first and once, and everything ends."""

import re
import time
from pathlib import Path

import pytest

OPTIONS = "--env faulty_envs:Faulty-v0 --actors 2 --total-frames 1e9"


def check(run, rank, cause):
    ended = time.time()
    assert run.rc not in (0, 2, 75), run.text
    lines = run.stderr.splitlines()
    if lines[0].startswith("+ "):  # the command of the relaunch
        lines = lines[1:]
    assert lines[:2] == [f"rank {rank} failed:", "Traceback (most recent call last):"], run.text
    assert run.stderr.count("Traceback") == 1, run.text
    assert run.stderr.count(cause) == 1, run.text
    log = run.folder / "logs" / f"rank-{rank}.log"
    assert cause in log.read_text()
    assert ended - log.stat().st_mtime < 10, "seconds from the exception to the end of all"


@pytest.mark.parametrize("ranks", [3, None], ids=["mpirun", "self"])
def test_an_exception_in_one_environment(ranks, start, tiny, tmp_path):
    fault = {"DRL_TEST_FAULT": "raise:2:37"}
    run = start(f"{tiny} {OPTIONS}", tmp_path, ranks, fault).wait()
    check(run, 2, "RuntimeError: the pole broke")


def test_an_environment_that_does_not_close_is_not_waited_for_for_ever(start, tmp_path):
    options = "--env faulty_envs:Faulty-v0 --net mlp --precision fp32 --actors 2 --run-dir run"
    limits = "--envs-per-actor 4 --batch-size 4 --total-frames 400 --silence-timeout 2 --tune off"
    fault = {"DRL_TEST_FAULT": "close:2:0"}
    run = start(f"{options} {limits}", tmp_path, 3, fault, job="ga3c").wait(40)
    assert run.rc not in (0, 2, 75), run.text
    assert "for the other ranks to finish, longer than" in run.stderr, run.text
    assert (run.folder / "DONE").exists(), "all was done but that"


def test_a_reward_that_is_not_a_number_stops_the_learner(start, tiny, tmp_path):
    run = start(f"{tiny} {OPTIONS}", tmp_path, env={"DRL_TEST_FAULT": "nan:1:37"}).wait()
    check(run, 0, "DivergenceError: the gradient of update")


def test_a_rank_that_is_stuck_with_its_log_is_told_in_one_line(mpirun, tiny, tmp_path):
    program = Path(__file__).parent / "programs" / "stuck_job.py"
    options = f"{tiny} --actors 2 --silence-timeout 20 --total-frames 400"
    run = mpirun(3, program, 20, *options.split(), cwd=tmp_path, timeout=100)
    assert run.rc not in (0, 2, 75, None), run.text
    assert re.match(r"rank [02]: waited 2\d s for the other ranks to open their logs", run.stderr)
    assert "Traceback" not in run.text
    assert "Traceback" in (tmp_path / "run" / "logs" / "rank-0.log").read_text()
