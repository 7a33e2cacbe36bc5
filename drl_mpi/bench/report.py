"""From raw measurements to the numbers of bench.json and the table on the screen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from drl_mpi.acting.requests import answer_record, request_record
from drl_mpi.bench.command import BenchError, Numbers, footer
from drl_mpi.bench.config import BenchOptions
from drl_mpi.bench.measure import JobRows, StageWindows, as_table
from drl_mpi.bench.runs import SERVICE, WAITS, Row, mean, predicted, throughput
from drl_mpi.bench.tables import columns
from drl_mpi.comm.parameters import parameters_record
from drl_mpi.envs import EnvSpec
from drl_mpi.experience.unroll import UnrollShape
from drl_mpi.nets import Network


def summarise_stage(measured: StageWindows) -> Numbers:
    """Rate and cost of a stage: the median over windows of the mean over cores."""
    rates = [statistics.fmean(at_once) for at_once in as_table(measured.windows)]
    rate = statistics.median(rates)
    return {
        "batch": str(measured.batch),
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
    rate = throughput(rows)
    return {
        "steps_per_s": rate,
        "frames_per_s": rate * action_repeat,
        "updates_per_s": throughput(rows, "updates"),
        "seconds": rows[-1]["time_s"] - rows[0]["time_s"],
        **{name: mean(rows, name) for name in WAITS},
        "policy_lag_mean": mean(rows, "policy_lag_mean", "updates"),
        "policy_lag_max": max(row["policy_lag_max"] for row in rows[1:]),
        "command": measured.command,
        "folder": str(measured.folder),
        "layout": measured.layout,
        "rows": rows,
        "load_before": measured.load_before,
    }


def summarise_service(rows: Sequence[Row]) -> Numbers:
    """What its learner's service of actions did. Raises BenchError where it did nothing."""
    size = predicted(rows)
    if math.isnan(size):
        raise BenchError("the job predicted nothing in the measured time; raise --seconds")
    return {name: mean(rows, name) for name in SERVICE} | {"predict_batch_mean": size}


def message_bytes(config: BenchOptions, spec: EnvSpec, net: Network) -> Numbers:
    """Bytes on the wire per step, from the layouts of the messages.

    A learner owes an actor the newest parameters for every unroll that it consumes, and sends them
    unless the last ones are still under way: one message per unroll at most. With central acting
    there are requests and answers instead, one of each for a step of a group.
    """
    if config.central:
        size = config.group_envs
        request, answer = request_record(spec, size).nbytes, answer_record(size).nbytes
        return {
            "requests": request / size,
            "answers": answer / size,
            "request_message": request,
            "answer_message": answer,
            "steps_per_message": size,
        }
    shape = UnrollShape(
        spec, config.unroll_length, config.record_envs(config.layout()), net.state_shape
    )
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


def table(result: Numbers) -> str:
    """The result for humans."""
    roof, job, sizes = result["roof"], result["end_to_end"], result["bytes_per_step"]
    cost = roof["us_per_step"]
    lines = columns(
        ("stage", "batch", "us/step per core", "steps/s per core", "share", "spread"),
        [
            *(
                (
                    name,
                    stage["batch"],
                    f"{stage['us_per_step']:,.1f}",
                    f"{stage['steps_per_s_per_core']:,.0f}",
                    f"{stage['share']:.0%}",
                    f"{stage['spread']:.0%}",
                )
                for name, stage in result["stages"].items()
            ),
            ("all three", "", f"{cost:,.1f}", f"{1e6 / cost:,.0f}", "100%", ""),
        ],
    )
    facts = [
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
        *(_service_facts(job) if "pps" in job else ()),
        (
            "bytes/step",
            ", ".join(
                f"{name.removesuffix('_at_most')} {size:,.0f}"
                for name, size in sizes.items()
                if not name.endswith("_message")
            ),
            "parameters: at most" if "parameters_at_most" in sizes else "",
        ),
    ]
    wide = max(len(value) for _, value, _ in facts)
    notes = [f"{name:<12}{value:<{wide}}   {note}".rstrip() for name, value, note in facts]
    head = [result["title"], f"+ {result['command']}"]
    return "\n".join([*head, "", *lines, "", *notes, "", *footer(result)])


def _service_facts(job: Numbers) -> list[tuple[str, str, str]]:
    low, high = job["predict_batch_p10"], job["predict_batch_p90"]
    threads = f"{job['predictors']:.3g} predictors, {job['trainers']:.3g} trainers"
    middle, late = job["request_wait_ms_p50"], job["request_wait_ms_p99"]
    return [
        (
            "predictions",
            f"{job['pps']:,.0f}/s, {job['predict_batch_mean']:.1f} environments each time",
            f"10 % {low:.0f}, 90 % {high:.0f}",
        ),
        ("answers", f"{middle:.2f} ms, 99 % {late:.2f} ms", "from a request's arrival"),
        ("at work", f"{threads}, {job['active_actors']:.3g} actors", "means over time"),
    ]


def title(config: BenchOptions, net: str) -> str:
    """What was measured, on one line."""
    core = "" if config.core == "none" else f" + {config.core}"
    groups = f" in {config.groups} groups, central acting" if config.central else ""
    return (
        f"{config.name}, {config.env}, {net}{core} {config.precision}, batch "
        f"{config.unrolls.batch} x {config.unroll_length} steps, {config.envs_per_actor} "
        f"environments per actor{groups}"
    )


def _rate(numbers: Numbers) -> str:
    return f"{numbers['steps_per_s']:,.0f} steps/s = {numbers['frames_per_s']:,.0f} frames/s"
