"""What a process finds out by itself, without MPI."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from drl_mpi.errors import UsageError
from drl_mpi.run.doctor.facts import Launch, Launcher, Mpirun, Rank, Slurm, Software
from drl_mpi.run.gpus import visible_gpus
from drl_mpi.run.launcher import core_quota, launched_ranks, mpirun_path, usable_cores
from drl_mpi.run.memory import available_bytes

PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "mpi4py": "mpi4py",
    "h5py": "h5py",
    "gymnasium": "gymnasium",
    "ale-py": "ale_py",
    "tyro": "tyro",
    "tensorboardX": "tensorboardX",
}
"""What jobs need: package -> module."""
IMPORTS_S = 100.0
"""Seconds for importing all of them; network file systems are slow the first time."""
LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "HYD", "SLURM_")
"""Beginnings of variables by which a child would take itself for a rank."""
LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
"""Variables with a process's number on its host."""


def launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Who started this process. Ask before MPI starts, which sets variables too.

    Raises:
        UsageError: when the launcher's variables are not numbers.
    """
    told = launched_ranks(environment)
    local = next((environment[name] for name in LOCAL_RANKS if name in environment), "0")
    in_step = "SLURM_STEP_ID" in environment
    if told is None:
        # A task of srun that nobody told of the others. One task is a shell that srun opened.
        tasks = environment.get("SLURM_STEP_NUM_TASKS", "1") if in_step else "1"
        if not tasks.isdecimal() or int(tasks) < 2:
            return Launch(Launcher.NONE)
        rank = int(environment.get("SLURM_PROCID", "0"))
        return Launch(Launcher.SRUN_ALONE, rank, int(tasks), local == "0")
    if "OMPI_COMM_WORLD_RANK" in environment:
        launcher = Launcher.MPIRUN
    elif "PMI_RANK" in environment:
        # Hydra starts its ranks through srun, where there is one; but only it counts them so.
        hydra = "MPI_LOCALRANKID" in environment or not in_step
        launcher = Launcher.HYDRA if hydra else Launcher.SRUN_PMI2
    else:
        launcher = Launcher.SRUN
    return Launch(launcher, *told, first_here=local == "0")


def slurm(environment: Mapping[str, str] = os.environ) -> Slurm | None:
    """The Slurm job around us; ``None`` outside one."""
    job = environment.get("SLURM_JOB_ID")
    names = ("SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_CPUS_PER_TASK")
    return None if job is None else Slurm(job, *(environment.get(name, "") for name in names))


def ulfm_active(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether mpirun was started with ``--with-ft ulfm``, which sets this variable."""
    return environment.get("OMPI_MCA_mpi_ft_enable", "").lower() in ("1", "true", "yes")


def machine(rank: int) -> Rank:
    """This process and its host; MPI and the software are for others to fill in."""
    shm_total, shm_free = _space(Path("/dev/shm"))
    return Rank(
        rank=rank,
        host=socket.gethostname(),
        cores=frozenset(usable_cores()),
        quota=core_quota(),
        gpus=visible_gpus(),
        gpu_files=len(list(Path("/dev").glob("nvidia[0-9]*"))),
        cuda_visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        omp_threads=os.environ.get("OMP_NUM_THREADS"),
        memory=available_bytes(),
        shm_total=shm_total,
        shm_free=shm_free,
        open_files=_limit(resource.RLIMIT_NOFILE),
        locked_memory=_limit(resource.RLIMIT_MEMLOCK),
        verbs=any(Path("/dev/infiniband").glob("uverbs*")),
    )


def software(timeout_s: float = IMPORTS_S) -> Software:
    """Imports every package in a process of its own: one that crashes takes nothing with it.

    Call it before MPI starts, after which no process may be started.
    """
    command = [sys.executable, "-m", "drl_mpi.run.doctor.imports"]
    root = str(Path(__file__).parents[3])
    env = children_environment()
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=timeout_s, env=env
        )
        out, end = done.stdout, _ending(done.returncode, done.stderr)
    except subprocess.TimeoutExpired as expired:
        out, end = (expired.stdout or b"").decode(), f"took more than {timeout_s:.0f} s"
    return read_imports(out, end)


def read_imports(lines: str, end: str) -> Software:
    """What the other process said of each package.

    Args:
        lines: one JSON object per package, as ``imports`` prints them.
        end: how it ended, which is the fault of the first package that it said nothing of.
    """
    versions: dict[str, str] = {}
    broken: dict[str, str] = {}
    told: dict[str, Any] = {}
    for line in lines.splitlines():
        try:
            row = json.loads(line)
            package = row["package"]
        except (ValueError, TypeError, KeyError):
            continue  # a package that prints when it is imported
        if row["error"]:
            broken[package] = row["error"]
        else:
            versions[package] = row["version"]
        told |= row.get("torch") or {}
    unsaid = [name for name in PACKAGES if name not in versions and name not in broken]
    if unsaid:
        broken[unsaid[0]] = f"the import {end}"
        for name in unsaid[1:]:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                broken[name] = "is not installed"
    return Software(
        platform.python_version(),
        sys.executable,
        versions,
        broken,
        told.get("cuda"),
        tuple(told.get("gpus", ())),
    )


def mpirun() -> Mpirun:
    """The mpirun beside this Python, or else in PATH. Call it before MPI starts."""
    try:
        path, _ = mpirun_path()
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=False, timeout=30,
            env=children_environment(),
        )  # fmt: skip
    except (UsageError, OSError, subprocess.TimeoutExpired) as error:
        return Mpirun(error=str(error).partition(";")[0])
    return Mpirun(path, done.stdout)


def children_environment() -> dict[str, str]:
    """This process's variables without its launcher's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return kept | allowed


def _ending(code: int, stderr: str) -> str:
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    last = (stderr.strip().splitlines() or ["no message"])[-1]
    return f"ended with {code}: {last}"


def _limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


def _space(path: Path) -> tuple[int | None, int | None]:
    """Bytes of a file system, in all and free for us."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None, None
    return found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail
