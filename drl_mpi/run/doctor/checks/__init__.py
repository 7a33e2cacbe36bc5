"""Judging: each check is a pure function from a survey to its findings, one line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from drl_mpi.run.doctor.checks import folder, host, launch, messages, software
from drl_mpi.run.doctor.facts import Finding, Survey

CHECKS: tuple[Callable[[Survey], Sequence[Finding]], ...] = (
    software.python,
    software.packages,
    software.mpi,
    software.mpirun,
    software.thread_level,
    software.ulfm,
    launch.launcher,
    launch.slurm,
    launch.ranks,
    launch.cores,
    launch.omp_threads,
    host.gpus,
    host.memory,
    host.shared_memory,
    host.limits,
    messages.latency,
    messages.bandwidth,
    folder.usable,
    folder.shared,
    folder.locks,
)
"""In the order of the table."""


def judge(survey: Survey) -> list[Finding]:
    """All findings, in the order of the table."""
    return [finding for check in CHECKS for finding in check(survey)]
