"""The command line of jobs/bench.py."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drl_mpi import envs, nets
from drl_mpi.bench.config import JOB_WINDOWS, PRESETS, WARM_UP_S, Bench
from drl_mpi.bench.measure import BenchError, measure_job, measure_stage
from drl_mpi.bench.picture import draw
from drl_mpi.bench.report import (
    assemble,
    machine,
    message_bytes,
    summarise_job,
    summarise_stage,
    table,
    title,
)
from drl_mpi.bench.stage import STAGES
from drl_mpi.errors import EXIT_OK, EXIT_USAGE, UsageError
from drl_mpi.run.folder import write_atomically
from drl_mpi.run.launch import parse
from drl_mpi.run.launcher import launched_ranks, usable_cores
from drl_mpi.run.layout import local_layout, plan
from drl_mpi.systems.network import make_net


def main(job: Path, arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table, writes bench.json and bench.png. Returns the exit code.

    Args:
        job: jobs/impala.py.
        arguments: the command line without the program; ``sys.argv[1:]`` if not given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # An exception ends what was started; the default would leave it running.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        config = parse(PRESETS, words)
        config.check()
        result = _bench(config, job, [sys.argv[0], *words])
        print(table(result), flush=True)
        _write(config.path / "bench.json", result)
        try:
            draw(result, config.path / "bench.png")
        except ImportError as error:
            print(f"no picture: it needs matplotlib ({error}): pip install -e '.[plot]'")
    except UsageError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except BenchError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, before)
    return EXIT_OK


def _bench(config: Bench, job: Path, command: list[str]) -> dict[str, Any]:
    cores = len(usable_cores())
    _check(config, cores)
    spec = envs.probe(config.env, config.env_options)
    net = make_net(config, spec)
    _make_folder(config.path)
    result: dict[str, Any] = {
        "title": title(
            config,
            nets.default_net(spec.observation_shape) if config.net == "auto" else config.net,
        ),
        "command": shlex.join(command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": os.getloadavg()[0],
        "machine": machine(cores),
        "config": config.as_dict(),
        "bytes_per_step": message_bytes(config, spec, net),
    }
    stages = {}
    for stage in STAGES:
        _say(f"{stage}, alone on {cores} cores: {config.seconds:g} s")
        stages[stage] = summarise_stage(measure_stage(stage, config, cores))
    _say(f"the whole job: {WARM_UP_S + JOB_WINDOWS * config.seconds:g} s")
    whole = summarise_job(measure_job(config, job), spec.action_repeat)
    return result | assemble(stages, whole, cores, spec.action_repeat)


def _check(config: Bench, cores: int) -> None:
    """Refuses now what the job would refuse after the stages have been measured."""
    if launched_ranks() is not None:
        raise UsageError("the bench starts mpirun itself; run it without mpirun or srun")
    wish = config.wanted(None)
    ranks = local_layout(cores, 0, **wish)
    config.check_layout(plan(ranks, ["localhost"] * ranks, 0, **wish))


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / ".probe", b"")
        (path / ".probe").unlink()
    except OSError as error:
        raise UsageError(
            f"--run-dir {str(path)!r} cannot be used: {error.strerror or error}; it must be a "
            "folder that you may write to"
        ) from error


def _write(path: Path, result: dict[str, Any]) -> None:
    write_atomically(
        path, (json.dumps(result, indent=2, default=str, allow_nan=False) + "\n").encode()
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
