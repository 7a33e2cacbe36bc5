"""IMPALA solves a small task, in lock-step so that one seed has one result."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).parents[2] / "jobs" / "impala.py"

# Found by experiment: with rewards clipped to 0.1 all of seeds 1 to 4 end between 498 and 500.
OPTIONS = (
    "--env CartPole-v1 --net mlp --precision fp32 --lockstep --learners 1 --actors 1 "
    "--envs-per-actor 16 --batch-size 16 --replay-fraction 0 --unroll-length 40 "
    "--checkpoint-unrolls 100000 "
    "--learning-rate 5e-3 --reward-clip 0.1 --baseline-cost 0.1 --entropy-cost 0.001 "
    "--total-frames 150000 --seed 2 --run-dir run"
)


@pytest.mark.slow
def test_cartpole(tmp_path):
    launchers = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(launchers)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(JOB), *OPTIONS.split()],
            cwd=tmp_path, env=env | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code = process.wait(180)
        finally:
            process.kill()  # its ranks follow it
            process.wait()
    assert code == 0, (tmp_path / "log").read_text()
    last = list(csv.DictReader((tmp_path / "run" / "progress.csv").open()))[-1]
    assert float(last["return_mean"]) >= 450.0, last
