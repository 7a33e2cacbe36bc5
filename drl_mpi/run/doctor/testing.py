"""Made-up facts for tests: a cluster without complaint, of which a test changes one thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from drl_mpi.run.doctor.facts import (
    Finding,
    Folder,
    Launch,
    Launcher,
    Link,
    Mpi,
    Mpirun,
    Rank,
    Software,
    Survey,
)
from drl_mpi.run.doctor.look import PACKAGES

GB = 10**9
OPEN_MPI = Mpi("Open MPI v5.0.11", "FUNNELED", size=2, ulfm=True, ulfm_active=False)
VERSIONS = dict.fromkeys(PACKAGES, "1.0")
PYTHON = Software("3.11.7", "/venv/bin/python", VERSIONS, {})


def rank(number: int = 0, host: str = "node1", **changes: Any) -> Rank:
    """A rank that has a host to itself."""
    facts: dict[str, Any] = {
        "rank": number, "host": host, "cores": frozenset(range(8)), "quota": 8, "gpus": 0,
        "gpu_files": 0, "cuda_visible": None, "omp_threads": None, "memory": 64 * GB,
        "shm_total": 32 * GB, "shm_free": 32 * GB, "open_files": 65536, "locked_memory": None,
        "verbs": False, "mpi": OPEN_MPI, "software": PYTHON,
    }  # fmt: skip
    return Rank(**(facts | changes))


def survey(*ranks: Rank, **changes: Any) -> Survey:
    """Of these ranks, or else of one on each of two hosts; MPI's world is as large as that."""
    ranks = ranks or (rank(0), rank(1, "node2"))
    told = [replace(r, mpi=r.mpi and replace(r.mpi, size=len(ranks))) for r in ranks]
    facts: dict[str, Any] = {
        "launch": Launch(Launcher.MPIRUN, 0, len(ranks)),
        "mpirun": Mpirun("/venv/bin/mpirun", "mpirun (Open MPI) 5.0.11"),
        "links": [Link((0, 1), ("node1", "node2"), 20.0, 1.0)],
        "folders": {r.host: Folder("nfs4", free=100 * GB) for r in ranks},
    }
    return Survey(ranks=told, **(facts | changes))


def only(findings: Sequence[Finding], status: str) -> str:
    """The text of the one finding, which has that status; its remedy follows an arrow."""
    (finding,) = findings
    assert finding.status == status, finding
    assert bool(finding.remedy) == (status != "ok"), finding
    assert "\n" not in finding.found + finding.remedy, finding
    return f"{finding.found} -> {finding.remedy}" if finding.remedy else finding.found
