"""bench.png: where the time of a step goes, and how steady the job ran."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drl_mpi.bench.style import BLUE, GREEN, GREY, LIGHT, ORANGE, VERMILION, caption, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"environment": BLUE, "inference": ORANGE, "training": GREEN}


def draw(result: dict[str, Any], output: Path) -> None:
    """Draws a bench's result.

    Args:
        result: as in bench.json.
        output: a .png to write.

    Raises:
        ImportError: without matplotlib.
    """
    with picture(output, (10, 3.6)) as figure:
        costs, rates = figure.subplots(1, 2, width_ratios=(1.6, 1))
        _draw_costs(costs, result)
        _draw_rates(rates, result)
        found = result["machine"]
        caption(figure, result["title"], f"{found['cpu']}, {found['cores']} cores")


def _draw_costs(axes: Axes, result: dict[str, Any]) -> None:
    """Two bars: the stages' costs, and the job's, whose surplus is waiting and transport."""
    roof, job = result["roof"], result["end_to_end"]
    spent = roof["cores"] * 1e6 / job["steps_per_s"]
    left = 0.0
    for name, stage in result["stages"].items():
        cost, label = stage["us_per_step"], f"{name} ({stage['batch']})"
        bars = axes.barh([1, 0], [cost, cost], left=left, color=_COLOURS[name], label=label)
        axes.bar_label(bars, [f"{cost:,.0f}", ""], label_type="center", color="white")
        left += cost
    rest = spent - roof["us_per_step"]
    if rest > 0:
        bars = axes.barh([0], [rest], left=left, color=LIGHT, label="waiting, transport, the rest")
        axes.bar_label(bars, [f"{rest:,.0f}"], label_type="center")
    axes.set_yticks([1, 0], ["stages alone", "end to end"])
    axes.set_ylim(-0.6, 1.6)
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)
    axes.set_title("core-microseconds per step")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.1), ncols=4, frameon=False)


def _draw_rates(axes: Axes, result: dict[str, Any]) -> None:
    """The job's rate between its rows, under the roof."""
    from matplotlib.ticker import EngFormatter

    rows = result["end_to_end"]["rows"]
    start = rows[0]["time_s"]
    edges = [row["time_s"] - start for row in rows]
    rates = [
        (now["steps"] - before["steps"]) / (now["time_s"] - before["time_s"])
        for before, now in pairwise(rows)
    ]
    roof = result["roof"]["steps_per_s"]
    axes.axhline(roof, color=GREY, lw=1.2, ls="--")
    axes.annotate("roof", (0, roof), xytext=(0, 3), textcoords="offset points", color=GREY)
    axes.stairs(rates, edges, baseline=None, color=VERMILION, lw=1.8)
    axes.set_ylim(0, 1.15 * max(roof, *rates))
    axes.set_xlim(0, edges[-1])
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_axisbelow(True)
    axes.set_title(f"steps per second, end to end: {result['efficiency']:.2f} of the roof")
    axes.set_xlabel("seconds after the warm-up")
