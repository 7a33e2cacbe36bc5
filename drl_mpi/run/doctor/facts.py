"""What the doctor knows before it judges: plain values, so that tests can make them up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property


class Launcher(StrEnum):
    """Who started this process."""

    MPIRUN = "Open MPI's mpirun"
    HYDRA = "MPICH's mpirun (hydra)"
    SRUN = "srun with PMIx"
    SRUN_PMI2 = "srun with PMI-2"
    SRUN_ALONE = "srun without PMIx"
    NONE = "none"

    @property
    def by_slurm(self) -> bool:
        """Whether Slurm itself started the processes."""
        return self in (Launcher.SRUN, Launcher.SRUN_PMI2, Launcher.SRUN_ALONE)


@dataclass(frozen=True)
class Launch:
    """What the launcher's variables tell."""

    launcher: Launcher
    rank: int = 0
    size: int = 1
    """Processes that the launcher started."""
    first_here: bool = True
    """Whether this is the first process on its host; also where the launcher does not tell."""


@dataclass(frozen=True)
class Slurm:
    """What Slurm's variables tell of the job around us; empty where they do not."""

    job: str
    nodes: str = ""
    tasks: str = ""
    cpus_per_task: str = ""


@dataclass(frozen=True)
class Mpi:
    """The MPI library as one rank has loaded it."""

    library: str
    """Its name and version, such as ``Open MPI v5.0.11``."""
    thread_level: str
    """Provided: SINGLE, FUNNELED, SERIALIZED or MULTIPLE; empty if MPI was not started."""
    size: int
    """Of the world."""
    ulfm: bool
    """Whether the library can go on without a rank that died."""
    ulfm_active: bool
    """Whether this launch has that switched on."""


@dataclass(frozen=True)
class Software:
    """What Python finds on a host, tried in a process of its own."""

    python: str
    executable: str
    versions: dict[str, str]
    """By package, for those that can be imported."""
    broken: dict[str, str]
    """By package: why it cannot be imported."""
    torch_cuda: str | None = None
    """The CUDA version that torch was built for."""
    gpu_names: tuple[str, ...] = ()
    """Of the GPUs that torch sees."""


@dataclass(frozen=True)
class Rank:
    """What one rank found. Sizes are in bytes."""

    rank: int
    host: str
    cores: frozenset[int]
    """Numbers of the cores that it may run on."""
    quota: int
    """Cores that it may fill: fewer, where a container limits them."""
    gpus: int
    """That the driver offers, and torch could use."""
    gpu_files: int
    """Devices of NVIDIA's driver on the host, whether we may use them or not."""
    cuda_visible: str | None
    """CUDA_VISIBLE_DEVICES; ``None`` if it is not set."""
    omp_threads: str | None
    """OMP_NUM_THREADS; ``None`` if it is not set."""
    memory: int
    """Free for programs."""
    shm_total: int | None
    """/dev/shm; ``None`` where there is none."""
    shm_free: int | None
    open_files: int | None
    """Soft limit; ``None`` for no limit."""
    locked_memory: int | None
    """Soft limit; ``None`` for no limit."""
    verbs: bool
    """Whether the host has an InfiniBand (verbs) device."""
    mpi: Mpi | None = None
    software: Software | None = None
    """On one rank of each host."""


@dataclass(frozen=True)
class Mpirun:
    """The mpirun that a job would start itself with."""

    path: str = ""
    version: str = ""
    error: str = ""
    """Why there is none."""


@dataclass(frozen=True)
class Link:
    """Messages between two ranks, as Python sees them."""

    ranks: tuple[int, int]
    hosts: tuple[str, str]
    latency_us: float
    """One way, 8 bytes, median."""
    gigabytes_per_s: float
    """One way, 8 MB, median."""

    @property
    def between_hosts(self) -> bool:
        return self.hosts[0] != self.hosts[1]


@dataclass(frozen=True)
class Folder:
    """The run folder as one host sees it."""

    kind: str = ""
    """Of the file system, such as ``nfs4``."""
    error: str = ""
    """Why files cannot be written there."""
    free: int = 0
    """In bytes."""
    sync_ms: float = 0.0
    """To write a small file, synchronise it to the disk, and rename it."""
    lock_error: str = ""
    """Why HDF5 cannot lock a file there."""
    same: bool = True
    """Whether a file that rank 0 wrote there is seen."""


@dataclass(frozen=True)
class Survey:
    """Everything that rank 0 has gathered."""

    launch: Launch
    ranks: Sequence[Rank]
    """Of those that answered, rank 0 first."""
    run_dir: str = "runs"
    slurm: Slurm | None = None
    mpirun: Mpirun = field(default_factory=Mpirun)
    mpi_error: str = ""
    """Why there is no MPI."""
    silent: Sequence[int] = ()
    """Ranks that did not answer in time."""
    timeout_s: float = 20.0
    links: Sequence[Link] = ()
    unmeasured: int = 0
    """Pairs of ranks for which there was no time."""
    link_error: str = ""
    """Between whom messages got lost."""
    folders: dict[str, Folder] = field(default_factory=dict)
    """By host."""

    @cached_property
    def hosts(self) -> dict[str, list[Rank]]:
        """Each host's ranks, rank 0's host first."""
        hosts: dict[str, list[Rank]] = {}
        for rank in self.ranks:
            hosts.setdefault(rank.host, []).append(rank)
        return hosts

    @cached_property
    def software(self) -> dict[str, Software]:
        """By host."""
        return {rank.host: rank.software for rank in self.ranks if rank.software is not None}

    @property
    def mpi(self) -> Mpi | None:
        """Of rank 0."""
        return self.ranks[0].mpi

    @property
    def broken(self) -> bool:
        """Whether some rank is stuck, so that no orderly end is possible."""
        return bool(self.silent or self.link_error)


class Status(StrEnum):
    """A verdict."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    status: Status
    what: str
    found: str
    remedy: str = ""
    """What to do about it; empty if all is well."""


def ok(what: str, found: str) -> Finding:
    """All is well."""
    return Finding(Status.OK, what, found)


def warn(what: str, found: str, remedy: str) -> Finding:
    """Jobs run, but worse than they could, or not all of them."""
    return Finding(Status.WARN, what, found, remedy)


def fail(what: str, found: str, remedy: str) -> Finding:
    """Jobs will not run."""
    return Finding(Status.FAIL, what, found, remedy)
