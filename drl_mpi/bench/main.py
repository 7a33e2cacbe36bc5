"""The command line of jobs/bench.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from drl_mpi import envs, nets
from drl_mpi.bench.command import (
    Numbers,
    draw_or_say,
    guard,
    make_folder,
    provenance,
    refuse_launcher,
    say,
    write_json,
)
from drl_mpi.bench.config import BenchOptions, parse_bench
from drl_mpi.bench.measure import measure_job, measure_stage
from drl_mpi.bench.picture import draw
from drl_mpi.bench.report import (
    assemble,
    message_bytes,
    summarise_job,
    summarise_service,
    summarise_stage,
    table,
    title,
)
from drl_mpi.bench.runs import JOBS
from drl_mpi.bench.stage import STAGES
from drl_mpi.systems.network import make_net


def main(arguments: Sequence[str] | None = None, jobs: Path = JOBS) -> int:
    """Measures, prints the table, writes bench.json and bench.png. Returns the exit code.

    Args:
        arguments: the command line without the program; ``sys.argv[1:]`` if not given.
        jobs: the folder of the jobs.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> None:
        config = parse_bench(words)
        config.check()
        result = _bench(config, jobs, ["python", sys.argv[0], *words])
        print(table(result), flush=True)
        write_json(config.path / "bench.json", result)
        draw_or_say(lambda: draw(result, config.path / "bench.png"))

    return guard(Path(sys.argv[0]).name, work)


def _bench(config: BenchOptions, jobs: Path, command: list[str]) -> Numbers:
    refuse_launcher()
    config.layout()  # refuses now what the job would refuse after the stages have been measured
    spec = envs.probe(config.env, config.env_options)
    net = make_net(config, spec)
    make_folder(config.path, "--run-dir")
    origin = provenance(command)
    cores = origin["machine"]["cores"]

    def job() -> Numbers:
        say(f"the whole job: {config.job_seconds:g} s")
        measured = measure_job(config, jobs / f"{config.name}.py")
        numbers = summarise_job(measured, spec.action_repeat)
        return numbers | (summarise_service(measured.rows) if config.central else {})

    # Central acting batches what waits, so only the job can tell how much that is.
    whole = job() if config.central else None
    sizes = config.batch_sizes(whole["predict_batch_mean"] if whole else None)
    stages = {}
    for stage in STAGES:
        say(f"{stage}, alone on {cores} cores, batches of {sizes[stage]}: {config.seconds:g} s")
        stages[stage] = summarise_stage(measure_stage(stage, config, sizes[stage], cores))
    network = nets.default_net(spec.observation_shape) if config.net == "auto" else config.net
    return {
        "title": title(config, network),
        **origin,
        "config": config.as_dict(),
        "batches": {stage: asdict(size) for stage, size in sizes.items()},
        "bytes_per_step": message_bytes(config, spec, net),
        **assemble(stages, whole or job(), cores, spec.action_repeat),
    }
