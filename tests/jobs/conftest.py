"""Runs a job for real, watches all of its processes, and leaves none behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest

from drl_mpi.run.launcher import launched_ranks, mpirun_command

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
PATHS = os.pathsep.join([str(PROGRAMS), str(ROOT)])
TAG = "DRL_TEST_TAG"
LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_")
LIMIT_S = 240.0
"""For one job: some 10 s are normal, but the machine may be busy with other things."""

TINY = (
    "--env CartPole-v1 --net mlp --precision fp32 --unroll-length 5 --envs-per-actor 4 "
    "--batch-size 4 --replay-fraction 0 --learners 1 --actors 1 --run-dir run"
)
"""The cheapest run that is a run."""


class Started:
    """One start of a job: by itself, or under mpirun with ``ranks``."""

    def __init__(
        self, job: str, options: str, cwd: Path, ranks: int | None, env: dict[str, str] | None
    ) -> None:
        self.cwd, self.folder = cwd, cwd / "run"
        self._tag = uuid.uuid4().hex
        kept = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
        words = [str(ROOT / "jobs" / f"{job}.py"), *options.split()]
        command = [sys.executable, *words]
        if ranks is not None:
            kept |= {
                "OMPI_ALLOW_RUN_AS_ROOT": "1",
                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                "OMPI_MCA_pml": "ob1",
                "OMPI_MCA_osc": "^ucx",
            }
            command = mpirun_command(ranks, words)
        self._out, self._err = (cwd / f"{self._tag}.{name}" for name in ("out", "err"))
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=kept
                | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS, TAG: self._tag}
                | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def alive(self) -> list[psutil.Process]:
        """Every process of this start, wherever it may have moved."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(TAG) == self._tag:
                    found.append(process)
        return found

    def rank(self, rank: int) -> psutil.Process:
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                launched = launched_ranks(process.environ())
                if launched is not None and launched[0] == rank:
                    return process
        raise AssertionError(f"there is no rank {rank}:\n{self.text}")

    def until(self, ready: Callable[[], Any], what: str) -> None:
        """Waits for something to happen while the job runs."""
        deadline = time.monotonic() + LIMIT_S
        while not ready():
            assert self.process.poll() is None, f"ended before {what}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {what}:\n{self.text}"
            time.sleep(0.02)

    def until_saved(self, count: int = 1) -> None:
        """Waits for checkpoints of this start."""
        checkpoints = self.folder / "checkpoints"
        before = set(checkpoints.glob("*.h5"))
        self.until(
            lambda: len(set(checkpoints.glob("*.h5")) - before) >= count, f"{count} checkpoints"
        )

    def until_learning(self) -> None:
        self.until(lambda: "learner" in self.stdout, "layout")

    def wait(self, limit_s: float = LIMIT_S) -> Started:
        """To its end; no process of it may be left 10 s later."""
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"still running after {limit_s:.0f} s:\n{self.text}") from None
        deadline = time.monotonic() + 10.0
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, f"left behind: {left}\n{self.text}"
        return self

    def end(self) -> None:
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def rc(self) -> int:
        return self.process.wait(0)

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def text(self) -> str:
        return f"rc {self.process.poll()}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


@pytest.fixture(scope="session")
def tiny() -> str:
    return TINY


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Started]]:
    """``start(options, cwd, ranks=None, env=None, job="impala")``; ``ranks``: under mpirun."""
    started: list[Started] = []

    def run(
        options: str,
        cwd: Path,
        ranks: int | None = None,
        env: dict[str, str] | None = None,
        job: str = "impala",
    ) -> Started:
        cwd.mkdir(parents=True, exist_ok=True)
        started.append(Started(job, options, cwd, ranks, env))
        return started[-1]

    yield run
    for each in started:
        each.end()


@pytest.fixture(scope="session")
def bits() -> Callable[[Path], dict[str, Any]]:
    """``bits(folder)``: every dataset of the newest checkpoint as bytes, but ``/session``.

    That is where the clock and the number of restarts are, which no run shares with another. Those
    of its parts are there as "learner-0.h5/NAME", without the version in their names.
    """

    def read(folder: Path) -> dict[str, Any]:
        newest = max((folder / "checkpoints").glob("*.h5"))
        parts = sorted(newest.with_suffix(".parts").glob("*"))
        found: dict[str, Any] = {"name": newest.name, "files": [part.name for part in parts]}

        def visit(prefix: str, name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and not name.startswith("session/"):
                value = np.asarray(item[()])
                found[prefix + name] = (value.dtype.str, value.shape, value.tobytes())

        for path, prefix in (
            (newest, ""),
            *((part, f"{part.name.rpartition('-')[0]}.h5/") for part in parts),
        ):
            with h5py.File(path, locking=False) as file:
                file.visititems(partial(visit, prefix))
        assert len(found) > 10, sorted(found)
        named = {name.removeprefix("parts/") for name in found if name.startswith("parts/")}
        assert {f"{name}.h5" for name in named} == set(found["files"])
        return found

    return read


@pytest.fixture(scope="session")
def progress() -> Callable[[Path], dict[str, list[float]]]:
    """The raw columns of a run folder's progress.csv."""

    def read(folder: Path) -> dict[str, list[float]]:
        header, *lines = (folder / "progress.csv").read_text().splitlines()
        rows = [list(map(float, line.split(","))) for line in lines]
        return {name: [row[i] for row in rows] for i, name in enumerate(header.split(","))}

    return read
