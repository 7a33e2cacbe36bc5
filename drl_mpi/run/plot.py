"""Draws the curves of one run or several from their progress.csv: the work behind jobs/plot.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from drl_mpi.errors import EXIT_OK, EXIT_USAGE, UsageError
from drl_mpi.run.folder import RunFolder
from drl_mpi.run.metrics import read_progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Table = dict[str, npt.NDArray[np.float64]]

# Okabe and Ito's colours: told apart by everybody. Beyond seven runs the dashes change.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")

SUFFIXES = (".png", ".pdf", ".svg")
STYLE: dict[str, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "small",
    "axes.titleweight": "bold",
    "font.size": 9,
    "grid.color": "#e6e6e6",
    "lines.solid_capstyle": "round",
}

_SMALL_PANELS = (
    ("frames_per_s", "frames per second"),
    ("policy_lag_mean", "policy lag (thin: maximum)"),
    ("actor_wait", "share of time actors wait"),
    ("learner_wait", "share of time learners wait"),
)
_SYSTEMS_PANELS = (
    ("pps", "predictions per second"),
    ("tps", "trained batches per second"),
    ("predict_batch_mean", "environments per prediction"),
    ("request_wait_ms_p50", "ms from request to answer"),
    ("staleness_mean", "staleness of gradients"),
)
"""Drawn if any of the runs has them."""
_ACROSS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code; bad usage is one line on stderr."""
    parser = _Parser(description="Plot the learning curves of runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="runs/NAME", help="run folders")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("curves.png"),
        help="a .png, .pdf or .svg to write (default: %(default)s)",
    )
    parser.add_argument("--x", choices=("frames", "time"), default="frames", help="the x axis")
    try:
        options = parser.parse_args(arguments)
        plot(options.runs, options.output, options.x)
    except UsageError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(f"wrote {options.output}")
    return EXIT_OK


def plot(runs: Sequence[Path], output: Path, x: str = "frames") -> None:
    """Draws `runs`, run folders, into the file `output`, whose suffix names the format.

    Raises UsageError for a folder without rows to draw, for a file that cannot be written and
    where matplotlib is not installed.
    """
    if output.suffix not in SUFFIXES:
        raise UsageError(f"--output {str(output)!r} must end in .png, .pdf or .svg")
    tables = [_rows(run) for run in runs]
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UsageError(
            f"plotting needs matplotlib ({error}): pip install -e '.[plot]'"
        ) from error
    with mpl.rc_context(STYLE):
        figure = _draw(tables, _labels(runs), x)
        try:
            figure.savefig(output, dpi=150)
        except OSError as error:
            raise UsageError(
                f"cannot write --output {str(output)!r}: {error.strerror or error}"
            ) from error


def _draw(tables: Sequence[Table], labels: Sequence[str], x: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    own = (panel for panel in _SYSTEMS_PANELS if any(panel[0] in table for table in tables))
    panels = (*_SMALL_PANELS, *own)
    rows = -(-len(panels) // _ACROSS)
    figure = Figure(figsize=(10, 4.5 + 2 * rows), layout="constrained")
    grid = figure.add_gridspec(1 + rows, _ACROSS, height_ratios=(2.2, *[1] * rows))
    large = figure.add_subplot(grid[0, :])
    small = [figure.add_subplot(grid[1 + i // _ACROSS, i % _ACROSS]) for i in range(len(panels))]
    positions, x_label = _x_axis(x, tables)
    curves = zip(tables, positions, labels, strict=True)
    for number, (table, over, label) in enumerate(curves):
        look: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": _DASHES[number // len(COLOURS) % len(_DASHES)],
        }
        marker = "o" if over.size == 1 else None  # one point makes no line
        large.plot(over, table["return_mean"], label=label, lw=1.8, marker=marker, **look)
        for axes, (name, _) in zip(small, panels, strict=True):
            if name in table:
                _small_curve(axes, over, table, name, look)
    _dress(large, "mean return of the last 100 episodes", x_label, 8)
    longest = max(float(over[-1]) for over in positions)
    for axes in (large, *small):
        axes.set_xlim(0, 1.01 * longest if longest > 0 else 1)
    if all(np.isnan(table["return_mean"]).all() for table in tables):
        large.set_yticks([])
        centre: dict[str, Any] = {"ha": "center", "va": "center", "transform": large.transAxes}
        large.text(0.5, 0.5, "no episode has ended yet", color="#808080", **centre)
    # Above the panels, where it hides no curve.
    columns = min(len(tables), 3)
    figure.legend(loc="outside upper left", ncols=columns, frameon=False)
    for axes, (name, title) in zip(small, panels, strict=True):
        _dress(axes, title, x_label, 3)
        axes.set_ylim(bottom=0)
        if name.endswith("_wait"):
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def _rows(run: Path) -> Table:
    if not run.is_dir():
        raise UsageError(f"{str(run)!r} is not a folder; give run folders: runs/NAME")
    table = read_progress(RunFolder(run).progress)
    if not table or not table["frames"].size:
        raise UsageError(f"{str(run)!r} has no rows in progress.csv yet; try again later")
    return table


def _small_curve(
    axes: Axes, over: npt.NDArray[np.float64], table: Table, name: str, look: dict[str, Any]
) -> None:
    """The curve as measured, faint, below its running mean."""
    width = max(1, over.size // 40)
    if name == "policy_lag_mean":
        axes.plot(over, running_mean(table["policy_lag_max"], width), lw=0.6, **look)
    else:
        axes.plot(over, table[name], lw=0.8, alpha=0.25, **look)
    marker = "o" if over.size == 1 else None
    axes.plot(over, running_mean(table[name], width), lw=1.4, marker=marker, **look)


def running_mean(values: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """The mean of up to `width` values that end at each, float64 [n] -> [n]; NaNs do not count.

    NaN where there was nothing to count.
    """
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    end = np.arange(1, values.size + 1)
    start = np.maximum(end - width, 0)
    number = counts[end] - counts[start]
    means = np.full(values.size, np.nan)
    np.divide(sums[end] - sums[start], number, out=means, where=number > 0)
    return means


def _dress(axes: Axes, title: str, x_label: str, ticks: int) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    if x_label == "frames":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _x_axis(x: str, tables: Sequence[Table]) -> tuple[list[npt.NDArray[np.float64]], str]:
    """Each run's positions on the x axis and its label: time in a unit that suits the longest."""
    if x == "frames":
        return [table["frames"] for table in tables], "frames"
    longest_s = max(table["time_s"][-1] for table in tables)
    units = ((86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
    size, unit = next(((s, u) for s, u in units if longest_s >= 2 * s), units[-1])
    return [table["time_s"] / size for table in tables], unit


def _labels(runs: Sequence[Path]) -> list[str]:
    """The folders' names; whole paths where two names are alike."""
    names = [run.resolve().name for run in runs]
    return [
        name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)
    ]


class _Parser(argparse.ArgumentParser):
    """Reports bad usage as this package does: one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")
