"""Is the tuner's setting the best one? python -m drl_mpi.bench.sweep

Runs central acting with every fixed setting of a grid of predictors, trainers and actors, in random
order, then once with the tuner, from one predictor, one trainer and all actors. The best settings
and the one that the tuner ended with are then measured again, in turns: the best of many noisy runs
looks better than it is. What follows "--" goes to all jobs. Needs a quiet machine.
"""

from __future__ import annotations

import csv
import io
import random
import statistics
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drl_mpi.acting.tuner import Setting
from drl_mpi.bench.command import (
    BenchError,
    Numbers,
    Parser,
    draw_or_say,
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
from drl_mpi.bench.runs import Row, after, check_job, run_for, summary, throughput
from drl_mpi.bench.settled import Trace, fixed, settled_since, trace
from drl_mpi.bench.style import BLUE, GREEN, GREY, LIGHT, ORANGE, VERMILION, caption, picture
from drl_mpi.bench.tables import columns, spread
from drl_mpi.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODULE = "drl_mpi.bench.sweep"
SYSTEMS: dict[str, list[str]] = {"ga3c": [], "impala": ["--acting", "central"]}
"""And what they need to act centrally."""
KEPT = (
    "time_s", "steps", "predictors", "trainers", "active_actors", "settled", "pps", "tps",
    "predict_batch_mean", "request_wait_ms_p50", "request_wait_ms_p99",
)  # fmt: skip
"""Of the tuned run's rows, in sweep.json."""
SMOOTH = 10
"""Rows of the tuned run over which its curve in the picture is averaged."""


@dataclass(frozen=True)
class Run:
    """One run with a fixed setting."""

    setting: Setting
    final: bool
    """Whether it is one of those at the end, in turns, or of the grid."""
    numbers: Row


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table, writes sweep.json, .csv, .txt and .png. Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> None:
        options = _parse(words)
        refuse_launcher()
        grid = [
            Setting(*each) for each in product(options.predictors, options.trainers, options.actors)
        ]
        for setting in grid:
            check_job(options.system, [*options.job, *fixed(setting)])
        check_job(options.system, [*options.job, *tuned_options(options)])
        make_folder(options.output, "--output")
        origin = provenance(module_command(MODULE, words))
        runs, rows = _measure(options, grid)
        result = origin | assemble(options, runs, rows)
        text = table(result)
        print(text, flush=True)
        write_text(options.output / "sweep.txt", text)
        write_json(options.output / "sweep.json", result)
        draw_or_say(lambda: draw(result, rows, options.output / "sweep.png"))

    return guard("sweep", work)


def _parse(words: Sequence[str]) -> Namespace:
    own, job = split_job_options(words)
    parser = Parser(
        prog=f"python -m {MODULE}",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        epilog="-- [options]   of all jobs, such as --env or --net",
    )
    parser.add_argument("--system", choices=list(SYSTEMS), default="ga3c")
    for name in ("predictors", "trainers", "actors"):
        parser.add_argument(f"--{name}", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="of each run, after its warm-up"
    )
    parser.add_argument(
        "--warm-up",
        type=float,
        default=5.0,
        help="seconds after the first update that do not count",
    )
    parser.add_argument("--repeats", type=int, default=1, help="of the grid; its medians count")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the runs")
    parser.add_argument(
        "--tuned-minutes", type=float, default=10.0,
        help="the tuned run ends then, or --last-seconds after it has settled",
    )  # fmt: skip
    parser.add_argument(
        "--last-seconds", type=float, default=60.0, help="of the tuned run, for its rate"
    )
    parser.add_argument(
        "--finals", type=int, default=3, help="turns of the best 3 and the tuner's; 0 for none"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/bench-sweep"))
    options = parser.parse_args(own)
    options.job = [*SYSTEMS[options.system], *job]
    least = min(options.repeats, options.seconds, *options.predictors, *options.trainers)
    if least < 1 or options.warm_up < 0 or options.finals < 0 or options.tuned_minutes <= 0:
        raise UsageError(
            "--repeats, --seconds, --predictors, --trainers must be 1 or more, --warm-up and "
            "--finals 0 or more, --tuned-minutes more than 0"
        )
    return options


def tuned_options(options: Namespace) -> list[str]:
    """Of the tuned run: it may go wherever the grid is, and nowhere else."""
    return [
        "--tune", "on", "--predictors", "1", "--trainers", "1",
        "--max-predictors", str(max(options.predictors)),
        "--max-trainers", str(max(options.trainers)), "--actors", str(max(options.actors)),
    ]  # fmt: skip


def _measure(options: Namespace, grid: Sequence[Setting]) -> tuple[list[Run], list[Row]]:
    runs: list[Run] = []

    def run(setting: Setting, final: bool = False) -> None:
        words = [*options.job, *fixed(setting)]
        rows = run_for(options.system, words, options.warm_up + options.seconds)
        numbers = summary(after(rows, options.warm_up))
        runs.append(Run(setting, final, numbers))
        write_text(options.output / "sweep.csv", as_csv(runs).rstrip())  # whatever comes later
        say(f"{'final, ' * final}{setting}: {numbers['steps_per_s']:,.0f} steps/s")

    for turn in range(options.repeats):
        for setting in shuffled(grid, options.seed + turn):
            run(setting)
    say(f"the tuner, for at most {options.tuned_minutes:g} minutes")

    def enough(rows: list[Row]) -> bool:
        since = settled_since(rows)
        return since is not None and rows[-1]["time_s"] - since >= options.last_seconds

    words = [*options.job, *tuned_options(options)]
    rows = run_for(options.system, words, 60 * options.tuned_minutes, enough)
    if len(rows) < 2:
        raise BenchError(f"the tuned run has {len(rows)} rows; raise --tuned-minutes")
    tuned = trace(rows, options.last_seconds).setting
    if tuned not in grid:  # say, with a number of actors between those of the grid
        for _ in range(options.repeats):
            run(tuned)
    best = list(medians(runs))[:3]
    for _ in range(options.finals):
        for setting in dict.fromkeys([*best, tuned]):
            run(setting, final=True)
    return runs, rows


def shuffled(grid: Sequence[Setting], seed: int) -> list[Setting]:
    """The grid in a random order."""
    return random.Random(seed).sample(list(grid), len(grid))


def medians(runs: Sequence[Run]) -> dict[Setting, float]:
    """Steps/s of every setting, the best first. One with finals is judged by these alone."""
    settings = dict.fromkeys(run.setting for run in runs)
    rates = {setting: statistics.median(rates_of(runs, setting)) for setting in settings}
    return dict(sorted(rates.items(), key=lambda item: -item[1]))


def rates_of(runs: Sequence[Run], setting: Setting) -> list[float]:
    """Steps/s of the runs that count for a setting."""
    mine = [run for run in runs if run.setting == setting]
    finals = [run for run in mine if run.final]
    return [run.numbers["steps_per_s"] for run in finals or mine]


def assemble(options: Namespace, runs: Sequence[Run], rows: Sequence[Row]) -> Numbers:
    """The best fixed setting against the tuner's."""
    tuned, rates = trace(rows, options.last_seconds), medians(runs)
    # Where there were finals they decide: what was measured once in the grid was picked by luck.
    finals = {run.setting for run in runs if run.final}
    best = next(setting for setting in rates if not finals or setting in finals)
    return {
        "options": vars(options),
        "settings": [
            {
                **asdict(setting),
                "steps_per_s": rate,
                "final": setting in finals,
                "runs": [run.numbers | {"final": run.final} for run in runs
                         if run.setting == setting],
            }
            for setting, rate in rates.items()
        ],
        "best": {**asdict(best), "steps_per_s": rates[best]},
        "tuned": {
            **asdict(tuned.setting),
            "settled_s": tuned.settled_s,
            "first_settled_s": tuned.first_settled_s,
            "last_steps_per_s": tuned.rate,
            "fixed_steps_per_s": rates[tuned.setting],
            "changes": [{"time_s": when, **asdict(what)} for when, what in tuned.changes],
            "rows": [{name: row[name] for name in KEPT} for row in rows],
        },
        "tuned_run_of_best": tuned.rate / rates[best],
        "tuned_setting_of_best": rates[tuned.setting] / rates[best],
    }  # fmt: skip


def as_csv(runs: Sequence[Run]) -> str:
    """A line per run, in the order in which they ran."""
    names = [name for name in runs[0].numbers if name not in ("predictors", "trainers")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("predictors", "trainers", "actors", "final", *names))
    for run in runs:
        setting = run.setting
        writer.writerow(
            (
                setting.predictors, setting.trainers, setting.actors, int(run.final),
                *(f"{run.numbers[name]:.7g}" for name in names),
            )
        )  # fmt: skip
    return text.getvalue()


def table(result: Numbers) -> str:
    """The result for humans."""
    best, tuned, options = result["best"], result["tuned"], result["options"]
    mine = {name: tuned[name] for name in ("predictors", "trainers", "actors")}
    rows = []
    for each in result["settings"]:
        counted = [run for run in each["runs"] if run["final"] == each["final"]]
        middle = {
            name: statistics.median(run[name] for run in counted)
            for name in ("predict_batch_mean", "request_wait_ms_p50", "actor_wait", "learner_wait")
        }
        rows.append(
            (
                *(str(each[name]) for name in mine),
                f"{each['steps_per_s']:,.0f}",
                spread([run["steps_per_s"] for run in counted]),
                f"{each['steps_per_s'] / best['steps_per_s']:.2f}",
                f"{middle['predict_batch_mean']:.1f}",
                f"{middle['request_wait_ms_p50']:.1f}",
                f"{middle['actor_wait']:.0%}",
                f"{middle['learner_wait']:.0%}",
                f"{len(counted)}" + " final" * each["final"],
                "tuned" if all(each[name] == tuned[name] for name in mine) else "",
            )
        )
    head = (
        *mine, "steps/s", "range", "of the best", "per prediction", "answer, ms", "actors wait",
        "learner waits", "runs", "",
    )  # fmt: skip
    when = (
        f"did not settle in {tuned['rows'][-1]['time_s']:.0f} s"
        if tuned["settled_s"] is None
        else f"settled after {tuned['settled_s']:.0f} s"
    )
    last = f"tuned run, last {options['last_seconds']:g} s"
    notes = [
        f"best fixed setting: {_words(best)}: {best['steps_per_s']:,.0f} steps/s",
        f"tuner: {_words(mine)}, {when}, {len(tuned['changes']) - 1} changes seen",
        _against(last, tuned["last_steps_per_s"], result["tuned_run_of_best"]),
        _against("its setting, fixed", tuned["fixed_steps_per_s"], result["tuned_setting_of_best"]),
    ]
    if any(each["final"] for each in result["settings"]):
        notes.insert(0, "best: of those that were measured again at the end, in turns (final)")
    lines = columns(head, rows, left=0)
    return "\n".join([f"+ {result['command']}", "", *lines, "", *notes, "", *footer(result)])


def _against(what: str, rate: float, ratio: float) -> str:
    return f"{what}: {rate:,.0f} steps/s, {ratio:.2f} of the best"


def _words(numbers: Numbers) -> str:
    return str(Setting(numbers["predictors"], numbers["trainers"], numbers["actors"]))


def draw(result: Numbers, rows: Sequence[Row], output: Path) -> None:
    """Every setting as a bar, sorted; beside it the tuner's way over time.

    Raises:
        ImportError: without matplotlib.
    """
    with picture(output, (10, max(4.5, 1.5 + 0.17 * len(result["settings"])))) as figure:
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.5), height_ratios=(1.6, 1))
        _draw_settings(figure.add_subplot(grid[:, 0]), result)
        rates = figure.add_subplot(grid[0, 1])
        way = trace(rows, result["options"]["last_seconds"])
        _draw_rates(rates, result, rows, way)
        _draw_way(figure.add_subplot(grid[1, 1], sharex=rates), rows, way)
        found, options = result["machine"], result["options"]
        caption(
            figure,
            " ".join([options["system"], *options["job"]]),
            f"{found['cpu']}, {found['cores']} cores",
        )


def _draw_settings(axes: Axes, result: Numbers) -> None:
    from matplotlib.ticker import EngFormatter

    settings, tuned = result["settings"], result["tuned"]
    names = ("predictors", "trainers", "actors")
    labels = [" ".join(str(each[name]) for name in names) for each in settings]
    at = range(len(settings), 0, -1)
    mine = [all(each[name] == tuned[name] for name in names) for each in settings]
    axes.barh(
        at, [each["steps_per_s"] for each in settings],
        color=[VERMILION if own else BLUE for own in mine],
    )  # fmt: skip
    for y, each in zip(at, settings):
        counted = [run for run in each["runs"] if run["final"] == each["final"]]
        rates = [run["steps_per_s"] for run in counted]
        axes.plot([min(rates), max(rates)], [y, y], color="black", lw=0.8)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_yticks(list(at), labels, fontsize=7)
    axes.set_ylim(0.3, len(settings) + 0.7)
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)
    axes.set_title("steps/s, fixed: predictors trainers actors")
    axes.set_xlabel("red: the tuner's setting; lines: ranges")


def _draw_rates(axes: Axes, result: Numbers, rows: Sequence[Row], way: Trace) -> None:
    from matplotlib.ticker import EngFormatter

    times = [row["time_s"] for row in rows]
    best, options = result["best"]["steps_per_s"], result["options"]
    each = [throughput(pair) for pair in pairwise(rows)]
    axes.plot(times[1:], each, color=BLUE, lw=0.6, alpha=0.35)
    smooth = [throughput(rows[max(0, i - SMOOTH) : i + 1]) for i in range(1, len(rows))]
    axes.plot(times[1:], smooth, color=BLUE, lw=1.5, label=f"tuned run, mean of {SMOOTH} s")
    axes.axhline(best, color=GREY, lw=1.2, ls="--", label="best fixed setting")
    for when, _ in way.changes[1:]:
        axes.axvline(when, color=LIGHT, lw=0.5, zorder=0)
    if way.settled_s is not None:
        axes.axvline(way.settled_s, color=VERMILION, lw=1.2, label="settled")
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_axisbelow(True)
    axes.set_xlim(0, times[-1])
    axes.set_ylim(0, 1.15 * max(best, float(np.percentile(each, 99))))
    axes.set_title(f"steps/s of the tuned run: {result['tuned_run_of_best']:.2f} of the best in "
                   f"its last {options['last_seconds']:g} s")  # fmt: skip
    axes.legend(loc="lower right", frameon=False, fontsize=7)


def _draw_way(axes: Axes, rows: Sequence[Row], way: Trace) -> None:
    from matplotlib.ticker import MaxNLocator

    edges = [*(when for when, _ in way.changes), rows[-1]["time_s"]]
    look: dict[str, Any] = {"predictors": ORANGE, "trainers": GREEN, "actors": BLUE}
    for number, (name, colour) in enumerate(look.items()):
        values = [getattr(setting, name) + 0.06 * (number - 1) for _, setting in way.changes]
        axes.stairs(values, edges, baseline=None, color=colour, lw=1.5, label=name)
    if way.settled_s is not None:
        axes.axvline(way.settled_s, color=VERMILION, lw=1.2)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    top = max(max(asdict(setting).values()) for _, setting in way.changes)
    axes.set_ylim(0.5, 1.25 * top + 0.5)
    axes.set_axisbelow(True)
    axes.set_title("its setting")
    axes.set_xlabel("seconds")
    axes.legend(loc="upper right", frameon=False, fontsize=7, ncols=3)


if __name__ == "__main__":
    sys.exit(main())
