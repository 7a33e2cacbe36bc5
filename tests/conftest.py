"""What all tests share: one torch thread, and programs under a real mpirun with a time limit."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import settings

from drl_mpi.run.launcher import mpirun_command

torch.set_num_threads(1)  # on a shared machine torch's waiting threads cost minutes
settings.register_profile("shared", deadline=None)  # and so do other people's jobs
settings.load_profile("shared")

HERE = Path(__file__).parent
LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_")
"""Variables that would make a child believe it was launched by somebody else."""
LONG = ("cluster", "jobs")
"""Folders whose tests take long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole jobs come first: at the end no worker should have a long file to itself."""
    items.sort(key=lambda item: item.path.relative_to(HERE).parts[0] not in LONG)


@dataclass(frozen=True)
class Finished:
    """How a program under mpirun ended."""

    rc: int | None
    """Exit code of mpirun; ``None`` when it was killed at its time limit."""
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        """Everything, for the message of a failed assertion."""
        return f"rc {self.rc}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


Mpirun = Callable[..., Finished]


def mpi_environment() -> dict[str, str]:
    """This process's variables without a launcher's, with root allowed and one thread per rank."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
    return kept | {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_osc": "^ucx",
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), kept.get("PYTHONPATH")])),
    }


def end_family(process: subprocess.Popen[str]) -> None:
    """Kills a launcher and everything it started; ranks lie in sessions of their own."""
    family = [process.pid]
    with contextlib.suppress(psutil.NoSuchProcess):
        family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session", autouse=True)
def launchers_leftovers() -> None:
    """Removes the session folders of launchers that were killed.

    A later mpirun with the same process id would find its sockets there and refuse to start.
    """
    for folder in Path(tempfile.gettempdir()).glob("ompi.*"):
        pid = folder.name.removeprefix("ompi.")
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mpirun() -> Iterator[Mpirun]:
    """``mpirun(ranks, program, *args, timeout=60, env=None, cwd=None)`` -> ``Finished``.

    ``program``: a path ending in .py, or the name of a module. It runs under the venv's own mpirun
    in its own session; at the time limit the whole family is killed and ``rc`` is ``None``.
    """
    started: list[subprocess.Popen[str]] = []

    def run(
        ranks: int,
        program: str | Path,
        *args: object,
        timeout: float = 60.0,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Finished:
        name = str(program)
        what = [name] if name.endswith(".py") else ["-m", name]
        process = subprocess.Popen(
            mpirun_command(ranks, ["-u", *what, *map(str, args)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=mpi_environment() | (env or {}),
            cwd=cwd,
            start_new_session=True,
        )
        started.append(process)
        try:
            out, err = process.communicate(timeout=timeout)
            return Finished(process.returncode, out, err)
        except subprocess.TimeoutExpired:
            end_family(process)
            out, err = process.communicate()
            return Finished(None, out, err)

    yield run
    for process in started:
        if process.poll() is None:
            end_family(process)
            process.wait()
