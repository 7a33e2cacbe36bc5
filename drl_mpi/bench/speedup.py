"""How much sooner more workers reach a score: python -m drl_mpi.bench.speedup

Runs A3C on a cheap environment with 1, 2, ... workers and one parameter server until the mean
return of the last 100 games reaches a score, with several seeds, and draws time to score over
workers. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from drl_mpi.bench.runs import JOBS
from drl_mpi.bench.style import BLUE, GREY, picture, picture_path
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.metrics import read_progress

OPTIONS = (
    "--env CartPole-v1 --net mlp --precision fp32 --envs-per-actor 8 --unroll-length 20 "
    "--optimizer adam --epsilon 1e-5 --learning-rate 1e-3 --reward-clip 0.1 --baseline-cost 0.1 "
    "--entropy-cost 0.001 --total-frames 4000000 --log-seconds 0.2"
)
"""Far from the end of the learning rate's schedule, so that it is the same for all."""
LIMIT_S = 180.0


def main() -> None:
    """Measures, prints a table, and draws it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--score", type=float, default=450.0)
    parser.add_argument("--output", type=picture_path, help="a picture (needs matplotlib)")
    parser.add_argument("--json", type=Path, help="all the numbers")
    options = parser.parse_args()
    found: dict[int, list[dict[str, float]]] = {n: [] for n in options.workers}
    for seed in range(1, options.seeds + 1):
        for workers in options.workers:  # in turn, so that a slow minute hits all alike
            found[workers].append(time_to_score(workers, seed, options.score))
            print(f"seed {seed}, {workers} workers: {found[workers][-1]}", file=sys.stderr)
    base = statistics.median(run["time_s"] for run in found[options.workers[0]])
    print(f"\nworkers  seconds to {options.score:g} (median of {options.seeds})   range  speed-up")
    for workers, runs in found.items():
        times = [run["time_s"] for run in runs]
        middle = statistics.median(times)
        print(
            f"{workers:7}  {middle:10.1f}  {min(times):6.1f} to {max(times):5.1f}  "
            f"{base / middle:8.2f}  frames {statistics.median(r['frames'] for r in runs):,.0f}  "
            f"frames/s {statistics.median(r['frames_per_s'] for r in runs):,.0f}"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if options.output:
        draw(found, options.score, options.output)


def time_to_score(workers: int, seed: int, score: float) -> dict[str, float]:
    """Seconds of training and frames until the score, or infinity after a time limit."""
    with tempfile.TemporaryDirectory() as where:
        folder = RunFolder(Path(where) / "run")
        command = [
            sys.executable, str(JOBS / "a3c.py"), *OPTIONS.split(), "--learners", str(workers),
            "--servers", "1", "--seed", str(seed), "--run-dir", str(folder.path),
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            began = time.monotonic()
            while time.monotonic() - began < LIMIT_S and process.poll() is None:
                time.sleep(0.5)
                if folder.progress.exists() and (row := first_above(folder, score)):
                    return row
        finally:
            process.terminate()  # the job saves and ends by itself
            process.wait()
    return {"time_s": math.inf, "frames": math.inf, "frames_per_s": math.nan}


def first_above(folder: RunFolder, score: float) -> dict[str, float] | None:
    """The first row of a run at or above a score."""
    rows = read_progress(folder.progress)
    for i, value in enumerate(rows["return_mean"]):
        if value >= score and rows["episodes"][i] >= 100:
            at, frames = float(rows["time_s"][i]), float(rows["frames"][i])
            return {"time_s": at, "frames": frames, "frames_per_s": frames / at}
    return None


def draw(found: dict[int, list[dict[str, float]]], score: float, path: Path) -> None:
    """Speed-up over workers, every run a point, the medians a line."""
    workers = list(found)
    medians = [statistics.median(run["time_s"] for run in runs) for runs in found.values()]
    with picture(path, (6.4, 4.0)) as figure:
        axes = figure.subplots()
        for n, runs in found.items():
            axes.plot([n] * len(runs), [run["time_s"] for run in runs], "o", color=BLUE, alpha=0.4)
        axes.plot(workers, medians, "-o", color=BLUE, label="median")
        axes.plot(workers, [medians[0] * workers[0] / n for n in workers], ":", color=GREY,
                  label="ideal, with a core for each")  # fmt: skip
        axes.set(
            xlabel="workers (one parameter server)",
            ylabel=f"seconds to a mean return of {score:g}",
            xticks=workers,
            ylim=(0, None),
            title="A3C on CartPole-v1: time to score",
        )
        axes.set_axisbelow(True)
        axes.legend(frameon=False)


if __name__ == "__main__":
    main()
