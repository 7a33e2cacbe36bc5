"""bench.png: where the time of a step goes, and how steady the job ran."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart by everybody.
_COLOURS = {"environment": "#0072B2", "inference": "#E69F00", "training": "#009E73"}
_REST = "#c8c8c8"
_STYLE: dict[str, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "small",
    "axes.titleweight": "bold",
    "font.size": 9,
    "grid.color": "#e6e6e6",
}


def draw(result: dict[str, Any], output: Path) -> None:
    """Draws a bench's result.

    Args:
        result: as in bench.json.
        output: a .png to write.

    Raises:
        ImportError: without matplotlib.
    """
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.6), layout="constrained")
        costs, rates = figure.subplots(1, 2, width_ratios=(1.6, 1))
        _draw_costs(costs, result)
        _draw_rates(rates, result)
        figure.suptitle(result["title"], x=0.01, ha="left", fontsize=9)
        figure.text(
            0.99, 0.01, f"{result['machine']['cpu']}, {result['machine']['cores']} cores",
            ha="right", va="bottom", color="#808080", fontsize=7,
        )  # fmt: skip
        figure.savefig(output, dpi=150)


def _draw_costs(axes: Axes, result: dict[str, Any]) -> None:
    """Two bars: the stages' costs, and the job's, whose surplus is waiting and transport."""
    roof, job = result["roof"], result["end_to_end"]
    spent = roof["cores"] * 1e6 / job["steps_per_s"]
    left = 0.0
    for name, stage in result["stages"].items():
        cost = stage["us_per_step"]
        bars = axes.barh([1, 0], [cost, cost], left=left, color=_COLOURS[name], label=name)
        axes.bar_label(bars, [f"{cost:,.0f}", ""], label_type="center", color="white")
        left += cost
    rest = spent - roof["us_per_step"]
    if rest > 0:
        bars = axes.barh([0], [rest], left=left, color=_REST, label="waiting, transport, the rest")
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
    axes.axhline(roof, color="#808080", lw=1.2, ls="--")
    axes.annotate("roof", (0, roof), xytext=(0, 3), textcoords="offset points", color="#808080")
    axes.stairs(rates, edges, baseline=None, color="#D55E00", lw=1.8)
    axes.set_ylim(0, 1.15 * max(roof, *rates))
    axes.set_xlim(0, edges[-1])
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_axisbelow(True)
    axes.set_title(f"steps per second, end to end: {result['efficiency']:.2f} of the roof")
    axes.set_xlabel("seconds after the warm-up")
