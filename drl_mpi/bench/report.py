"""From raw measurements to the numbers of bench.json and the table on the screen."""

from __future__ import annotations

import math
import platform
import socket
import statistics
from collections.abc import Mapping
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from drl_mpi.bench.config import Bench
from drl_mpi.bench.measure import JobRows, StageWindows, as_table
from drl_mpi.comm.parameters import parameters_record
from drl_mpi.comm.world import library_version
from drl_mpi.envs import EnvSpec
from drl_mpi.experience.unroll import UnrollShape
from drl_mpi.nets import Network

BUSY = 0.5
"""A load average before the first stage from which other programs count as at work."""
PACKAGES = ("torch", "numpy", "mpi4py", "gymnasium", "ale-py", "drl-mpi")

Numbers = dict[str, Any]


def summarise_stage(measured: StageWindows) -> Numbers:
    """Rate and cost of a stage: the median over windows of the mean over cores."""
    rates = [statistics.fmean(at_once) for at_once in as_table(measured.windows)]
    rate = statistics.median(rates)
    return {
        "steps_per_s_per_core": rate,
        "us_per_step": 1e6 / rate,
        "spread": (max(rates) - min(rates)) / rate,
        "window_steps_per_s_per_core": rates,
        "windows": measured.windows,
        "load_before": measured.load_before,
    }


def summarise_job(measured: JobRows, action_repeat: int) -> Numbers:
    """The job between its first row, which ends the warm-up, and its last."""
    rows = measured.rows
    first, last = rows[0], rows[-1]
    seconds = last["time_s"] - first["time_s"]
    rate = (last["steps"] - first["steps"]) / seconds

    def mean(column: str, weight: str) -> float:
        """Of what the rows say about the time since the row before."""
        weights = [now[weight] - before[weight] for before, now in pairwise(rows)]
        values = [row[column] for row in rows[1:]]
        return math.fsum(w * v for w, v in zip(weights, values)) / math.fsum(weights)

    return {
        "steps_per_s": rate,
        "frames_per_s": rate * action_repeat,
        "updates_per_s": (last["updates"] - first["updates"]) / seconds,
        "seconds": seconds,
        "actor_wait": mean("actor_wait", "time_s"),
        "learner_wait": mean("learner_wait", "time_s"),
        "policy_lag_mean": mean("policy_lag_mean", "updates"),
        "policy_lag_max": max(row["policy_lag_max"] for row in rows[1:]),
        "command": measured.command,
        "folder": str(measured.folder),
        "layout": measured.layout,
        # JSON has no word for NaN, such as the mean return before the first game has ended.
        "rows": [
            {name: x if math.isfinite(x) else None for name, x in row.items()} for row in rows
        ],
        "load_before": measured.load_before,
    }


def message_bytes(config: Bench, spec: EnvSpec, net: Network) -> Numbers:
    """Bytes on the wire per step, from the layouts of the messages.

    A learner owes an actor the newest parameters for every unroll that it consumes, and sends them
    unless the last ones are still under way: one message per unroll at most.
    """
    shape = UnrollShape(spec, config.unroll_length, config.record_width, net.state_shape)
    unroll = shape.record().nbytes
    parameters = parameters_record(sum(p.numel() for p in net.parameters())).nbytes
    steps = shape.length * shape.envs
    return {
        "unrolls": unroll / steps,
        "parameters_at_most": parameters / (shape.length * config.envs_per_actor),
        "unroll_message": unroll,
        "parameters_message": parameters,
        "steps_per_message": steps,
    }


def assemble(
    stages: Mapping[str, Numbers], job: Numbers, cores: int, action_repeat: int
) -> Numbers:
    """Shares, roof and efficiency: stages alone on all cores against the whole job on them.

    The roof is cores / sum of the stages' costs: every core busy with exactly these, never waiting.
    """
    cost_us = math.fsum(stage["us_per_step"] for stage in stages.values())
    roof = cores * 1e6 / cost_us
    return {
        "stages": {
            name: {**stage, "share": stage["us_per_step"] / cost_us}
            for name, stage in stages.items()
        },
        "roof": {
            "cores": cores,
            "us_per_step": cost_us,
            "steps_per_s": roof,
            "frames_per_s": roof * action_repeat,
        },
        "end_to_end": job,
        "efficiency": job["steps_per_s"] / roof,
    }


def machine(cores: int) -> Numbers:
    """What the numbers were measured on, and with."""
    versions = {"python": platform.python_version(), "mpi": library_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return {
        "host": socket.gethostname(),
        "cpu": _cpu_model(),
        "cores": cores,
        "system": platform.platform(),
        "versions": versions,
    }


def table(result: Numbers) -> str:
    """The result for humans."""
    head = ("stage", "us/step per core", "steps/s per core", "share", "spread")
    rows = [
        (
            name,
            f"{stage['us_per_step']:,.1f}",
            f"{stage['steps_per_s_per_core']:,.0f}",
            f"{stage['share']:.0%}",
            f"{stage['spread']:.0%}",
        )
        for name, stage in result["stages"].items()
    ]
    roof, job, sizes = result["roof"], result["end_to_end"], result["bytes_per_step"]
    cost = roof["us_per_step"]
    rows.append(("all three", f"{cost:,.1f}", f"{1e6 / cost:,.0f}", "100%", ""))
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in (head, *rows)
    ]
    facts = (
        ("roof", _rate(roof), f"{roof['cores']} cores / {cost:,.1f} us"),
        (
            "end to end",
            _rate(job),
            f"{job['seconds']:.0f} s, {job['updates_per_s']:,.1f} updates/s",
        ),
        ("efficiency", f"{result['efficiency']:.2f}", "end to end / roof"),
        (
            "waits",
            f"actors {job['actor_wait']:.0%}, learner {job['learner_wait']:.0%}",
            "share of their time",
        ),
        (
            "policy lag",
            f"mean {job['policy_lag_mean']:.1f}, max {job['policy_lag_max']:.0f}",
            "versions",
        ),
        (
            "bytes/step",
            f"unrolls {sizes['unrolls']:,.0f}, parameters {sizes['parameters_at_most']:,.0f}",
            "parameters: at most",
        ),
    )
    wide = max(len(value) for _, value, _ in facts)
    notes = [f"{name:<12}{value:<{wide}}   {note}" for name, value, note in facts]
    found = result["machine"]
    with_ = ", ".join(
        f"{name} {found['versions'][name]}" for name in ("python", "torch", "numpy", "ale-py")
    )
    mpi = found["versions"]["mpi"].partition(",")[0]
    footer = [f"{found['cpu']}, {found['cores']} cores; {with_}; {mpi}"]
    if result["load_before"] > BUSY:
        footer.append(
            f"The load average before the start was {result['load_before']:.1f}: other programs "
            "were at work, so measure again on a quiet machine"
        )
    return "\n".join([result["title"], "", *lines, "", *notes, "", *footer])


def title(config: Bench, net: str) -> str:
    """What was measured, on one line."""
    core = "" if config.core == "none" else f" + {config.core}"
    return (
        f"{config.name}, {config.env}, {net}{core} {config.precision}, batch {config.batch_size} x "
        f"{config.unroll_length} steps, {config.envs_per_actor} environments per actor"
    )


def _rate(numbers: Numbers) -> str:
    return f"{numbers['steps_per_s']:,.0f} steps/s = {numbers['frames_per_s']:,.0f} frames/s"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
