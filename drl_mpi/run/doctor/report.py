"""The table, and the file with the results."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drl_mpi.run.doctor.facts import Finding, Launcher, Status, Survey
from drl_mpi.run.folder import write_atomically

WIDTH = 98
"""Columns that the table keeps to; only a single long word is wider."""
START_IT = "start it under mpirun or srun to check communication"


def table(findings: Sequence[Finding]) -> str:
    """A line for each finding, and its remedy below it."""
    wide = max((len(finding.what) for finding in findings), default=0)
    lines = []
    for finding in findings:
        head = f"{finding.status:<4}  {finding.what:<{wide}}  "
        lines += _wrapped(finding.found, head)
        if finding.remedy:
            lines += _wrapped(finding.remedy, " " * len(head) + "-> ")
    return "\n".join(lines)


def summary(survey: Survey, findings: Sequence[Finding]) -> list[str]:
    """Lines below the table."""
    counts = Counter(finding.status for finding in findings)
    lines = [", ".join(f"{counts[status]} {status}" for status in Status)]
    if survey.launch.launcher is Launcher.NONE and not survey.mpi_error:
        lines.append(START_IT)
    return lines


def exit_code(findings: Sequence[Finding]) -> int:
    """1 if anything failed, else 0."""
    return int(any(finding.status is Status.FAIL for finding in findings))


def write_json(path: Path, survey: Survey, findings: Sequence[Finding]) -> None:
    """Writes the findings, and the facts behind them. Raises OSError."""
    result = {"findings": [asdict(finding) for finding in findings], "facts": asdict(survey)}
    write_atomically(path, f"{json.dumps(result, indent=2, default=_plain)}\n".encode())


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else str(value)


def _wrapped(text: str, head: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head.rstrip()]
