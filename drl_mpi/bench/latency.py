"""What central acting adds to a prediction, and whether anybody starves.

python -m drl_mpi.bench.latency                  the round trip of one request, and its parts
python -m drl_mpi.bench.latency --actors 2000    requests of so many actors at once

One rank acts, others ask, with the library's own code on both ends; environments show a frozen
frame. A round trip begins when an actor's environments have stepped and ends when they may step
again. With a gap the learner has been idle for so long when a request comes. Needs a quiet machine.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from drl_mpi.bench.asking import Case, Report, measure
from drl_mpi.bench.command import (
    BenchError,
    Numbers,
    Parser,
    footer,
    guard,
    make_folder,
    module_command,
    provenance,
    refuse_launcher,
    say,
    write_json,
    write_text,
)
from drl_mpi.bench.tables import columns
from drl_mpi.errors import UsageError

MODULE = "drl_mpi.bench.latency"
TARGET_US = 300.0
"""Median round trip around the prediction itself, while requests follow one another."""
TARGET_RATIO = 5.0
"""99 % of all waits are at most so many times their median."""
WARM_UP = 0.25
"""Share of the time that does not count."""
PARTS = ("to the learner", "to a predictor", "prediction", "to the MPI thread", "to the actor")
PREDICTION = PARTS.index("prediction")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints tables, writes latency.json and .txt. Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> None:
        options = _parse(words)
        refuse_launcher()
        make_folder(options.output, "--output")
        origin = provenance(module_command(MODULE, words))
        measured = _crowd(options) if options.actors else _trips(options)
        result = origin | {"options": vars(options), **measured}
        text = crowd_table(result) if options.actors else trips_table(result)
        print(text, flush=True)
        name = "starvation" if options.actors else "latency"
        write_text(options.output / f"{name}.txt", text)
        write_json(options.output / f"{name}.json", result)

    return guard("latency", work)


def _parse(words: Sequence[str]) -> Namespace:
    parser = Parser(
        prog=f"python -m {MODULE}",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--net", default="shallow", help="that chooses")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--seconds", type=float, help="of each measurement (4; --actors: 20)")
    parser.add_argument("--envs", type=int, nargs="+", help="of a request (1 16; --actors: 1)")
    parser.add_argument(
        "--gap-ms", type=float, nargs="+", default=[0.0, 5.0],
        help="between an answer and the next request, as if environments stepped for so long",
    )  # fmt: skip
    parser.add_argument("--actors", type=int, default=0, help="that ask at once, all the time")
    parser.add_argument("--ranks", type=int, default=4, help="with --actors: that share these")
    parser.add_argument("--predictors", type=int, default=1, help="with --actors: threads")
    parser.add_argument("--predict-batch", type=int, default=128, help="with --actors: at most")
    parser.add_argument("--output", type=Path, default=Path("runs/bench-latency"))
    options = parser.parse_args(list(words))
    options.envs = options.envs or ([1] if options.actors else [1, 16])
    if options.seconds is None:
        options.seconds = 20.0 if options.actors else 4.0
    if min(options.seconds, *options.envs, options.ranks, options.predictors) <= 0:
        raise UsageError("--seconds, --envs, --ranks, --predictors must be more than 0")
    if options.actors < 0 or options.actors % options.ranks:
        raise UsageError(f"--actors {options.actors} are not shared evenly by --ranks "
                         f"{options.ranks}; change either")  # fmt: skip
    return options


# -- one request at a time --------------------------------------------------------------------


def _trips(options: Namespace) -> Numbers:
    cases = [
        Case(envs, net, options.precision, gap, options.seconds)
        for gap in options.gap_ms
        for net in (None, options.net)
        for envs in options.envs
    ]
    found = []
    for case in cases:
        say(f"{case.net or 'nothing'}, {case.envs} environments, gap {case.gap_ms:g} ms")
        with tempfile.TemporaryDirectory(prefix="drl-bench-") as where:
            found.append(asdict(case) | summarise_trips(measure(case, Path(where))))
    return {"target_us": TARGET_US, "cases": found}


def summarise_trips(report: Report) -> Numbers:
    """Medians and 99 % in microseconds: the round trip, its parts, and the prediction alone.

    Args:
        report: of one actor with one lane.
    """
    ((trips,),) = report["trips"]
    rows = [
        (asked, arrived, taken, chosen, answered, came)
        for (asked, came), (_, _, arrived, taken, chosen), answered in zip(
            trips, report["served"], report["answered"]
        )
    ]
    times = np.array(rows[int(WARM_UP * len(rows)) :])
    if not len(times):
        raise BenchError("no request was answered; raise --seconds")
    trip = 1e6 * (times[:, -1] - times[:, 0])
    parts = 1e6 * np.diff(times, axis=1)
    middle, late = np.percentile(trip, (50, 99)).tolist()
    alone, alone_late = (1e6 * np.percentile(report["alone"], (50, 99))).tolist()
    return {
        "requests": len(trip),
        "round_trip_us": {"p50": middle, "p99": late},
        "alone_us": {"p50": alone, "p99": alone_late},
        "beyond_us": middle - alone,
        "around_us": float(np.median(trip - parts[:, PREDICTION])),
        "parts_us": {
            name: dict(zip(("p50", "p99"), np.percentile(part, (50, 99)).tolist()))
            for name, part in zip(PARTS, parts.T)
        },
    }


def trips_table(result: Numbers) -> str:
    """The result for humans."""
    rows = [
        (
            case["net"] or "nothing",
            f"{case['envs']}",
            f"{case['gap_ms']:g}",
            f"{case['requests']:,}",
            f"{case['round_trip_us']['p50']:,.0f}",
            f"{case['round_trip_us']['p99']:,.0f}",
            f"{case['alone_us']['p50']:,.0f}",
            f"{case['beyond_us']:,.0f}",
            f"{case['around_us']:,.0f}",
            *(f"{case['parts_us'][name]['p50']:,.0f}" for name in PARTS),
        )
        for case in result["cases"]
    ]
    head = (
        "predicts", "envs", "gap, ms", "requests", "median", "99 %", "alone", "beyond", "around",
        *PARTS,
    )  # fmt: skip
    least = min(case["gap_ms"] for case in result["cases"])
    worst = max(case["around_us"] for case in result["cases"] if case["gap_ms"] == least)
    verdict = "kept" if worst < result["target_us"] else "missed"
    target = f"target: less than {result['target_us']:g} us around the prediction, gap {least:g} ms"
    notes = [
        "microseconds; alone: the prediction without anybody asking; beyond: median - alone;",
        "around: the round trip without the prediction that it contains, which is slower than one",
        "alone, since others have had the caches; last five columns: medians of the parts",
        f"{target}: {verdict} (at most {worst:,.0f})",
    ]
    lines = columns(head, rows)
    return "\n".join([f"+ {result['command']}", "", *lines, "", *notes, "", *footer(result)])


# -- thousands at once ------------------------------------------------------------------------


def _crowd(options: Namespace) -> Numbers:
    found = []
    for envs in options.envs:
        case = Case(
            envs, options.net, options.precision, 0.0, options.seconds, options.ranks,
            options.actors // options.ranks, options.predictors, options.predict_batch,
        )  # fmt: skip
        say(f"{options.actors} actors of {envs} environments on {options.ranks} ranks")
        with tempfile.TemporaryDirectory(prefix="drl-bench-") as where:
            found.append(asdict(case) | summarise_crowd(measure(case, Path(where))))
    return {"target_ratio": TARGET_RATIO, "cases": found}


def summarise_crowd(report: Report) -> Numbers:
    """How long requests waited, in milliseconds, and how many of each lane were answered."""
    lanes = [trips for rank in report["trips"] for trips in rank]
    times = [came for trips in lanes for _, came in trips]
    if not times:
        raise BenchError("no request was answered; raise --seconds")
    begin = min(times) + WARM_UP * (max(times) - min(times))
    seen = [came - asked for trips in lanes for asked, came in trips if came >= begin]
    answers = [sum(came >= begin for _, came in trips) for trips in lanes]
    waits = report["waits"][int(WARM_UP * len(report["waits"])) :]
    batches = Counter(taken for _, _, _, taken, _ in report["served"] if taken >= begin)
    return {
        "requests": len(seen),
        "requests_per_s": len(seen) / (max(times) - begin),
        "requests_per_prediction": len(seen) / max(1, len(batches)),
        "seen_by_actors": _waits(seen),
        "from_arrival": _waits(waits),
        "answers_per_lane": {"fewest": min(answers), "most": max(answers)},
    }


def _waits(seconds: Sequence[float]) -> Numbers:
    middle, late, longest = (1e3 * np.percentile(seconds, (50, 99, 100))).tolist()
    return {"p50_ms": middle, "p99_ms": late, "max_ms": longest, "p99_of_p50": late / middle}


def crowd_table(result: Numbers) -> str:
    """The result for humans."""
    rows = []
    for case in result["cases"]:
        answers = case["answers_per_lane"]
        for name in ("seen_by_actors", "from_arrival"):
            waits = case[name]
            rows.append(
                (
                    name.replace("_", " "),
                    f"{case['askers'] * case['lanes']:,}",
                    f"{case['envs']}",
                    f"{case['requests_per_s']:,.0f}",
                    f"{case['requests_per_prediction']:.0f}",
                    *(f"{waits[key]:,.1f}" for key in ("p50_ms", "p99_ms", "max_ms")),
                    f"{waits['p99_of_p50']:.2f}",
                    f"{answers['fewest']:,} to {answers['most']:,}",
                )
            )
    head = (
        "waits", "actors", "envs", "requests/s", "per prediction", "median, ms", "99 %", "longest",
        "99 % / median", "answers per actor",
    )  # fmt: skip
    worst = max(case["seen_by_actors"]["p99_of_p50"] for case in result["cases"])
    verdict = "kept" if worst <= result["target_ratio"] else "missed"
    note = f"target: 99 % at most {result['target_ratio']:g} x the median, as seen by actors: "
    lines = columns(head, rows)
    return "\n".join(
        [f"+ {result['command']}", "", *lines, "", note + verdict, "", *footer(result)]
    )


if __name__ == "__main__":
    sys.exit(main())
