"""How much one node's rate two nodes deliver: python -m tests.cluster.rate [OPTION ...]

Submits a batch script on one and on two nodes of a cluster in a box, in turns and with the same
number of ranks: shared memory against TCP. Needs root and a quiet machine. Both nodes are this one
machine: a rank count per node above its cores keeps the ranks' niceness the same in both, and Linux
must not share cores between sessions, of which each node has one, before it looks at niceness.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.box import Box, missing

ROOT = Path(__file__).parents[2]
WARM_UP = 2
"""Rows of progress.csv, of five seconds each, that do not count."""

AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")


@contextlib.contextmanager
def one_group() -> Iterator[None]:
    """Linux shares cores between processes, not first between the sessions that they belong to."""
    if not AUTOGROUP.exists():
        yield
        return
    before = AUTOGROUP.read_text()
    AUTOGROUP.write_text("0")
    try:
        yield
    finally:
        AUTOGROUP.write_text(before)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--system", default="impala")
    parser.add_argument("--ranks", type=int, default=6, help="in all; even")
    parser.add_argument("--rounds", type=int, default=3, help="turns of both")
    parser.add_argument("--minutes", type=float, default=0.7, help="of each run")
    options, job = parser.parse_known_args()
    if lacking := missing():
        raise SystemExit(lacking)
    with (
        tempfile.TemporaryDirectory(prefix="box", ignore_cleanup_errors=True) as root,
        tempfile.TemporaryDirectory(prefix="rate") as where,
        one_group(),
        Box(Path(root), 2, options.ranks) as box,
    ):
        found: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(options.rounds):
            for nodes, rates in found.items():
                folder = Path(where) / f"{turn}-{nodes}"
                folder.mkdir()
                number = box.sbatch(
                    f"--nodes={nodes}",
                    f"--ntasks-per-node={options.ranks // nodes}",
                    ROOT / "slurm" / f"{options.system}.sh",
                    *("--max-minutes", options.minutes, "--log-seconds", 5),
                    *("--run-dir", folder / "run", *job),
                    cwd=folder,
                    env={"DRL_MPI_HOME": str(ROOT), "PYTHON": sys.executable},
                )
                box.wait(number, timeout=120 + 90 * options.minutes)
                with (folder / "run" / "progress.csv").open() as file:
                    rows = [float(row["frames_per_s"]) for row in csv.DictReader(file)]
                rates.append(statistics.median(rows[WARM_UP:-1]))
                print(f"turn {turn}, nodes {nodes}: {rates[-1]:,.0f} frames/s", flush=True)
        one, two = (statistics.median(rates) for rates in found.values())
        pairs = ", ".join(f"{b / a:.2f}" for a, b in zip(*found.values()))
        print(
            f"one node {one:,.0f}, two nodes {two:,.0f} frames/s: {two / one:.3f} (turns: {pairs})"
        )


if __name__ == "__main__":
    main()
