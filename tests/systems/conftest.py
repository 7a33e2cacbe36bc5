"""Runs a job to its end, in lock-step so that one seed has one result."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMON = "--env CartPole-v1 --net mlp --precision fp32 --lockstep --run-dir run"
LIMIT_S = 600
"""Some 30 s are normal, but the machine may be busy with other things."""


@pytest.fixture
def final_return(tmp_path):
    """``final_return(job, options)``: the mean return of the last 100 games of CartPole."""

    def run(job, options):
        command = [
            sys.executable, str(ROOT / "jobs" / f"{job}.py"),
            *f"{COMMON} {options}".split(),
        ]  # fmt: skip
        launchers = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_")
        env = {k: v for k, v in os.environ.items() if not k.startswith(launchers)}
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=tmp_path, env=env | {"OMP_NUM_THREADS": "1"}, stdout=log,
                stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(LIMIT_S)
            finally:
                process.kill()  # its ranks follow it
                process.wait()
        assert code == 0, (tmp_path / "log").read_text()
        rows = list(csv.DictReader((tmp_path / "run" / "progress.csv").open()))
        return float(rows[-1]["return_mean"])

    return run
