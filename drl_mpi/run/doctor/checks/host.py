"""What each host has: GPUs, memory, shared memory, limits."""

from __future__ import annotations

from drl_mpi.run.doctor.checks.words import by_value, count, few, least, size, where
from drl_mpi.run.doctor.facts import Finding, Rank, Survey, fail, ok, warn

RANK_BYTES = 150_000_000
"""Memory of a rank that loads torch (measured)."""
SHM_BYTES = 16 * 1024 * 1024
"""Shared memory that Open MPI sets aside per rank (measured with Open MPI 5)."""
FILES = 256
"""Open files of a rank, beside one connection to every other."""


def gpus(survey: Survey) -> list[Finding]:
    """Those that learners could use; equally many on all hosts, all seen by all ranks."""
    sees = {host: max(rank.gpus for rank in ranks) for host, ranks in survey.hosts.items()}
    for problem in (_cpu_torch, _no_driver, _split):
        finding = problem(survey, sees)
        if finding is not None:
            return [finding]
    if len(set(sees.values())) > 1:
        remedy = "learners need equal hosts: ask for nodes alike, or CUDA_VISIBLE_DEVICES= for none"
        return [warn("GPUs", f"hosts differ: {by_value(sees)}", remedy)]
    number = next(iter(sees.values()))
    if number == 0:
        hidden = _hidden(survey)
        return [ok("GPUs", f"none{hidden}; learners use cores")]
    each = " on each host" if len(sees) > 1 else ""
    names = {name for found in survey.software.values() for name in found.gpu_names}
    return [ok("GPUs", f"{number}{each}" + (f": {few(sorted(names))}" if names else ""))]


def _cpu_torch(survey: Survey, _sees: dict[str, int]) -> Finding | None:
    files = {host: ranks[0].gpu_files for host, ranks in survey.hosts.items()}
    bad = [
        host
        for host, found in survey.software.items()
        if files.get(host) and "torch" in found.versions and found.torch_cuda is None
    ]
    if not bad:
        return None
    text = f"{count(files[bad[0]], 'GPU')} on {where(bad, [*files])}, but torch has no CUDA"
    return warn(
        "GPUs", text, "install torch with CUDA (pytorch.org, Get started); else cores learn"
    )


def _no_driver(survey: Survey, sees: dict[str, int]) -> Finding | None:
    bad = [
        host
        for host, ranks in survey.hosts.items()
        if ranks[0].gpu_files and not sees[host] and any(not _hides(rank) for rank in ranks)
        if (found := survey.software.get(host)) is not None and found.torch_cuda
    ]
    if not bad:
        return None
    text = f"the driver offers none on {where(bad, [*sees])}, though the devices are there"
    remedy = "try nvidia-smi there; in a container: --nv or --gpus all; in Slurm: --gpus-per-node"
    return warn("GPUs", text, remedy)


def _split(survey: Survey, _sees: dict[str, int]) -> Finding | None:
    """Slurm's GPUs per task: a learner may use one of its host, as others are not seen."""
    for host, ranks in survey.hosts.items():
        visible = {rank.cuda_visible for rank in ranks if rank.gpus}
        if len(visible) > 1:
            values = few(sorted(str(value) for value in visible))
            text = f"ranks of {host} see different ones (CUDA_VISIBLE_DEVICES {values})"
            return warn("GPUs", text, "ask for GPUs per node: --gpus-per-node, no --gpus-per-task")
    return None


def _hides(rank: Rank) -> bool:
    return rank.cuda_visible is not None and rank.cuda_visible.strip() in ("", "-1", "NoDevFiles")


def _hidden(survey: Survey) -> str:
    files = max(rank.gpu_files for rank in survey.ranks)
    if files and any(_hides(rank) for rank in survey.ranks):
        return f" of {files} visible (CUDA_VISIBLE_DEVICES)"
    return ""


def memory(survey: Survey) -> list[Finding]:
    """Room for every rank's torch, and for what it works on."""
    free = {host: min(rank.memory for rank in ranks) for host, ranks in survey.hosts.items()}
    need = {host: len(ranks) * RANK_BYTES for host, ranks in survey.hosts.items()}
    host = min(free, key=lambda name: free[name] / need[name])
    found = f"{size(free[host])} free for {count(len(survey.hosts[host]), 'rank')}" + (
        f" on {host}, the tightest" if len(free) > 1 else ""
    )
    text = f"{found}; with torch they take {size(need[host])}"
    remedy = "fewer ranks per host, or more memory (Slurm: --mem)"
    if free[host] < need[host]:
        return [fail("memory", text, remedy)]
    if free[host] < 2 * need[host]:
        return [warn("memory", text, remedy)]
    return [ok("memory", found)]


def shared_memory(survey: Survey) -> list[Finding]:
    """/dev/shm, through which ranks of a host send messages; small in containers."""
    name = "/dev/shm"
    missing = [host for host, ranks in survey.hosts.items() if ranks[0].shm_free is None]
    if missing:
        remedy = "mount a tmpfs there; ranks of a host send messages through it"
        return [warn(name, f"missing on {where(missing, [*survey.hosts])}", remedy)]
    free = {host: ranks[0].shm_free or 0 for host, ranks in survey.hosts.items()}
    # Ranks have their segments already while they are examined: these are not free any more.
    bad = [h for h, r in survey.hosts.items() if (r[0].shm_total or 0) < len(r) * SHM_BYTES]
    bad = bad or [h for h in free if free[h] < SHM_BYTES]
    host, least_free = least(free, lambda value: value)
    if bad:
        host = bad[0]
        text = f"{size(free[host])} of {size(survey.hosts[host][0].shm_total or 0)} free on "
        text += f"{where(bad, [*free])}; MPI may take {size(len(survey.hosts[host]) * SHM_BYTES)}"
        return [warn(name, text, "containers: docker run --shm-size=1g; else remove old files")]
    return [ok(name, f"{size(least_free)} free" + (f" on {host}" if len(free) > 1 else ""))]


def limits(survey: Survey) -> list[Finding]:
    """Open files, and memory that InfiniBand may lock."""
    findings = []
    need = FILES + 4 * len(survey.ranks)
    few_files = [r for r in survey.ranks if r.open_files is not None and r.open_files < need]
    if few_files:
        rank = few_files[0]
        text = f"{rank.open_files} open files on {rank.host}; {need} are safe"
        findings.append(warn("limits", text, "ulimit -n 65536 before the start"))
    locked = [r for r in survey.ranks if r.verbs and r.locked_memory is not None]
    if locked:
        rank = locked[0]
        text = (
            f"{size(rank.locked_memory or 0)} may be locked on {rank.host}; InfiniBand locks more"
        )
        findings.append(warn("limits", text, "ulimit -l unlimited; Slurm: PropagateResourceLimits"))
    if findings:
        return findings
    files = [rank.open_files for rank in survey.ranks if rank.open_files is not None]
    return [ok("limits", f"{min(files)} open files" if files else "open files unlimited")]
