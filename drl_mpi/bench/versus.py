"""Predictions per second of A3C and GA3C: python -m drl_mpi.bench.versus

The comparison of Babaeizadeh et al. 2017, table 2, for a small and a large network on this machine:
A3C with its paper's settings (one environment per worker), A3C and GA3C with this repository's
defaults, in turns, so that a slow minute hits all alike. Each job chooses its own ranks for the
machine. A prediction is the choice of one action: A3C makes as many as it consumes steps. What
follows "--" goes to all jobs. Needs a quiet machine.
"""

from __future__ import annotations

import math
import statistics
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from drl_mpi.acting.tuner import Setting
from drl_mpi.bench.command import (
    Numbers,
    Parser,
    footer,
    guard,
    make_folder,
    module_command,
    provenance,
    refuse_launcher,
    say,
    split_job_options,
    write_json,
    write_text,
)
from drl_mpi.bench.runs import Row, after, check_job, run_for, summary
from drl_mpi.bench.settled import fixed, settled_since, trace
from drl_mpi.bench.tables import columns, spread
from drl_mpi.errors import UsageError

MODULE = "drl_mpi.bench.versus"


@dataclass(frozen=True)
class Contender:
    """A job with some settings."""

    name: str
    system: str
    options: tuple[str, ...] = ()


LONE = Contender("A3C, the paper's", "a3c", ("--preset", "paper"))
OURS = Contender("A3C, our defaults", "a3c")
CENTRAL = Contender("GA3C", "ga3c", ("--tune", "off"))
TUNED = "GA3C, tuned"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table, writes versus.json and versus.txt. Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> None:
        options = _parse(words)
        refuse_launcher()
        for net in options.nets:
            for contender in (LONE, OURS, CENTRAL):
                check_job(contender.system, _options(contender, net, options))
        make_folder(options.output, "--output")
        result = provenance(module_command(MODULE, words)) | _measure(options)
        text = table(result)
        print(text, flush=True)
        write_text(options.output / "versus.txt", text)
        write_json(options.output / "versus.json", result)

    return guard("versus", work)


def _parse(words: Sequence[str]) -> Namespace:
    own, job = split_job_options(words)
    parser = Parser(
        prog=f"python -m {MODULE}",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        epilog="-- [options]   of all jobs, such as --env",
    )
    parser.add_argument("--nets", nargs="+", default=["shallow", "deep"])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of all jobs")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="of each run, after its warm-up"
    )
    parser.add_argument(
        "--warm-up",
        type=float,
        default=10.0,
        help="seconds after the first update that do not count",
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns, of which the median counts")
    parser.add_argument(
        "--tune-minutes", type=float, default=0.0,
        help="before the turns, let GA3C's tuner search for at most so long for each network; what "
        "it finds takes part, held fixed",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("runs/bench-versus"))
    options = parser.parse_args(own)
    options.job = job
    if options.repeats < 1 or options.seconds < 1 or options.warm_up < 0:
        raise UsageError("--repeats and --seconds must be 1 or more, --warm-up 0 or more")
    return options


def _options(contender: Contender, net: str, options: Namespace) -> list[str]:
    return [*contender.options, "--net", net, "--precision", options.precision, *options.job]


def _measure(options: Namespace) -> Numbers:
    contenders = {net: [LONE, OURS, CENTRAL] for net in options.nets}
    tuning: dict[str, Numbers] = {}
    if options.tune_minutes:
        for net, among in contenders.items():
            setting, tuning[net] = _tune(net, options)
            among.append(Contender(TUNED, "ga3c", tuple(fixed(setting))))
    found: dict[str, dict[str, list[Row]]] = {
        net: {contender.name: [] for contender in among} for net, among in contenders.items()
    }
    for turn in range(options.repeats):
        for net, among in contenders.items():
            for contender in among:
                words = _options(contender, net, options)
                rows = run_for(contender.system, words, options.warm_up + options.seconds)
                numbers = predictions(summary(after(rows, options.warm_up)))
                found[net][contender.name].append(numbers)
                write_json(options.output / "versus.json", {"runs": found})  # whatever comes later
                say(f"turn {turn + 1}: {net}, {contender.name}: {numbers['predictions_per_s']:,.0f}"
                    " predictions/s")  # fmt: skip
    return {
        "options": vars(options),
        "contenders": {net: [asdict(each) for each in among] for net, among in contenders.items()},
        "tuning": tuning,
        "runs": found,
        "ratios": {net: ratios(runs) for net, runs in found.items()},
    }


def _tune(net: str, options: Namespace) -> tuple[Setting, Numbers]:
    say(f"{net}: tuning GA3C for at most {options.tune_minutes:g} minutes")
    words = ["--tune", "on", "--net", net, "--precision", options.precision, *options.job]
    rows = run_for(
        "ga3c", words, 60 * options.tune_minutes, lambda rows: settled_since(rows) is not None
    )
    traced = trace(rows)
    return traced.setting, {"settled_s": traced.settled_s, **asdict(traced.setting)}


def predictions(numbers: Row) -> Row:
    """Adds them: a worker that acts for itself consumes each of its predictions."""
    local = math.isnan(numbers["pps"])
    return {"predictions_per_s": numbers["steps_per_s" if local else "pps"], **numbers}


def ratios(runs: dict[str, list[Row]]) -> Numbers:
    """Of each kind of GA3C to each of A3C: of the medians, and in every single turn."""
    rates = {name: [run["predictions_per_s"] for run in found] for name, found in runs.items()}
    return {
        f"{name} / {other}": {
            "ratio": statistics.median(rates[name]) / statistics.median(rates[other]),
            "turns": [ours / theirs for ours, theirs in zip(rates[name], rates[other])],
        }
        for name in rates
        for other in (LONE.name, OURS.name)
        if name not in (LONE.name, OURS.name)
    }


def table(result: Numbers) -> str:
    """The result for humans."""
    rows = []
    for net, runs in result["runs"].items():
        for name, found in runs.items():
            middle = _median(found)
            rate = statistics.median(run["predictions_per_s"] for run in found)
            base = statistics.median(run["predictions_per_s"] for run in runs[LONE.name])
            batch = middle["predict_batch_mean"]
            rows.append(
                (
                    net,
                    name,
                    f"{rate:,.0f}",
                    spread([run["predictions_per_s"] for run in found]),
                    f"{rate / base:.2f}",
                    f"{middle['steps_per_s']:,.0f}",
                    f"{middle['updates_per_s']:,.0f}",
                    "" if math.isnan(batch) else f"{batch:.1f}",
                )
            )
    head = (
        "network", "", "predictions/s", "range", "ratio", "steps trained/s", "updates/s",
        "per prediction",
    )  # fmt: skip
    lines = columns(head, rows, left=2)
    options = result["options"]
    notes = [f"medians of {options['repeats']} turns of {options['seconds']:g} s"]
    for net, each in result["ratios"].items():
        for name, found in each.items():
            turns = found["turns"]
            single = f" ({min(turns):.2f} to {max(turns):.2f} in single turns)" * (len(turns) > 1)
            notes.append(f"{net}: {name}: {found['ratio']:.2f}{single}")
    for net, found in result["tuning"].items():
        when = "did not settle" if found["settled_s"] is None else f"{found['settled_s']:.0f} s"
        setting = Setting(found["predictors"], found["trainers"], found["actors"])
        notes.append(f"{net}: tuned to {setting} ({when})")
    return "\n".join([f"+ {result['command']}", "", *lines, "", *notes, "", *footer(result)])


def _median(found: Sequence[Row]) -> Row:
    return {name: statistics.median(run[name] for run in found) for name in found[0]}


if __name__ == "__main__":
    sys.exit(main())
