"""Which rank would do what on an allocation: python -m drl_mpi.bench.placement

    python -m drl_mpi.bench.placement --nodes 4 --ntasks-per-node 8 --gpus-per-node 2
    python -m drl_mpi.bench.placement --system gorilla --nodes 2 -- --servers 2 --learners 2

Plans as the job itself will, starts nothing, and prints the map; with --output it draws it.
"""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drl_mpi import systems
from drl_mpi.bench.command import Parser, draw_or_say, guard, split_job_options
from drl_mpi.bench.style import BLUE, GREEN, GREY, LIGHT, ORANGE, picture, picture_path
from drl_mpi.errors import UsageError
from drl_mpi.run.command_line import parse
from drl_mpi.run.layout import Layout, Placement, Role, plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from drl_mpi.systems.system import System

SYSTEMS = sorted(
    path.stem
    for path in Path(systems.__path__[0]).glob("*.py")
    if "\nPRESETS" in path.read_text(encoding="utf-8")
)
COLOUR = {Role.LEARNER: BLUE, Role.SERVER: ORANGE, Role.ACTOR: LIGHT}
ORDER = (Role.LEARNER, Role.SERVER, Role.ACTOR)
HOSTS_ACROSS, MOST_HOSTS = 4, 16
"""Hosts beside one another, and hosts that are drawn: more look the same."""
INCHES = 0.45
"""Of a rank."""


def main(words: Sequence[str] | None = None) -> int:
    """Plans, prints and draws. Returns the exit code."""
    own, options = split_job_options(sys.argv[1:] if words is None else words)

    def work() -> None:
        asked = _parse(own)
        job = job_of(asked.system, options)
        layout = planned(job, asked.nodes, asked.ntasks_per_node, asked.gpus_per_node)
        print(layout.table())
        if asked.output:
            published = not (job.served or job.central)
            draw_or_say(lambda: draw(layout, asked.output, published=published))

    return guard("placement", work)


def _parse(words: Sequence[str]) -> Namespace:
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=SYSTEMS, default="impala")
    parser.add_argument("--nodes", type=int, default=1, help="hosts")
    parser.add_argument("--ntasks-per-node", type=int, default=16, help="ranks of each")
    parser.add_argument("--gpus-per-node", type=int, default=0, help="GPUs of each")
    parser.add_argument("--output", type=picture_path, help="a picture (needs matplotlib)")
    return parser.parse_args(words)


def job_of(system: str, options: Sequence[str]) -> System:
    """A system with a job's options. Raises UsageError."""
    presets = importlib.import_module(f"drl_mpi.systems.{system}").PRESETS
    job: System = parse(presets, options)
    return job


def planned(job: System, nodes: int, tasks: int, gpus: int) -> Layout:
    """The layout that a job will choose.

    Args:
        job: what runs.
        nodes: hosts.
        tasks: ranks of each.
        gpus: of each.

    Raises:
        UsageError: for one that cannot work.
    """
    for name, value, least in (
        ("--nodes", nodes, 1),
        ("--ntasks-per-node", tasks, 1),
        ("--gpus-per-node", gpus, 0),
    ):
        if value < least:
            raise UsageError(f"{name} {value}; allowed: {least} or more")
    hosts = [f"node{node + 1}" for node in range(nodes) for _ in range(tasks)]
    layout = plan(len(hosts), hosts, gpus, **job.wanted(len(hosts)), cores_per_host=tasks)
    job.check_layout(layout)
    return layout


def draw(layout: Layout, output: Path, *, published: bool) -> None:
    """Hosts as frames, ranks as boxes, and the way of published parameters between hosts.

    Args:
        layout: who does what.
        output: the picture.
        published: whether learners publish parameters to actors.
    """
    relays = {r for r in layout.actors if published and layout.published_by(r)}
    every = list(dict.fromkeys(place.host for place in layout.ranks))
    hosts = every[:MOST_HOSTS]
    shown = [place for place in layout.ranks if place.host in hosts]
    most = max(layout.ranks_on(host) for host in hosts)
    across = 4 if most <= 16 else 8
    down = -(-most // across)
    wide, high = across + 1.0, down + 1.5  # what a host takes, its name and margins included
    columns, rows = min(len(hosts), HOSTS_ACROSS), -(-len(hosts) // HOSTS_ACROSS)
    size = (INCHES * max(columns * wide, 14.0) + 0.3, INCHES * (rows * high + 1.0) + 0.3)
    with picture(output, size) as figure:
        axes = figure.subplots()
        corner = {
            host: (index % HOSTS_ACROSS * wide, -(index // HOSTS_ACROSS) * high)
            for index, host in enumerate(hosts)
        }
        where = {}
        for place in shown:
            x, y = corner[place.host]
            row, column = divmod(place.local_rank, across)
            where[place.rank] = x + column, y - row
        for host, (x, y) in corner.items():
            _box(axes, x - 0.6, y - down + 0.35, across + 0.2, down + 0.6, "none", edge=GREY)
            axes.text(x - 0.45, y + 0.7, host, va="center", color=GREY, fontsize=8)
        for place in shown:
            _rank(axes, place, *where[place.rank], relays=place.rank in relays)
        for place in shown:
            if published and place.role is Role.ACTOR:
                source = layout.publisher_to(place.rank)
                if source in where and layout.ranks[source].host != place.host:
                    _arrow(axes, where[source], where[place.rank])
        below = 0.7 - rows * high
        _legend(axes, below, {place.role for place in shown}, relays=bool(relays))
        if len(every) > len(hosts):
            more = f"and {len(every) - len(hosts)} more hosts"
            axes.text(columns * wide - 1.0, below, more, ha="right", va="center", color=GREY)
        axes.set(xlim=(-0.8, max(columns * wide, 14.0) - 0.6), ylim=(below - 0.5, 1.3))
        axes.set_aspect("equal")
        axes.set_axis_off()


def _rank(axes: Axes, place: Placement, x: float, y: float, *, relays: bool) -> None:
    colour = GREEN if relays else COLOUR[place.role]
    _box(axes, x - 0.42, y - 0.42, 0.84, 0.84, colour)
    dark = place.role is Role.LEARNER or relays
    text = f"{place.rank}" if place.gpu is None else f"{place.rank}\nGPU {place.gpu}"
    axes.text(x, y, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")


def _box(
    axes: Axes, x: float, y: float, width: float, height: float, face: str, edge: str = "none"
) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, zorder=1
        )
    )


def _arrow(axes: Axes, begin: tuple[float, float], end: tuple[float, float]) -> None:
    look = {
        "arrowstyle": "-|>", "color": GREEN, "lw": 1.0, "shrinkA": 12, "shrinkB": 13,
        "connectionstyle": "arc3,rad=-0.15",
    }  # fmt: skip
    axes.annotate("", end, begin, arrowprops=look, zorder=0)


def _legend(axes: Axes, y: float, there: set[Role], *, relays: bool) -> None:
    items = [(str(role), COLOUR[role]) for role in ORDER if role in there]
    if relays:
        items.append(("actor that relays parameters on its host", GREEN))
    x = -0.4
    for text, colour in items:
        _box(axes, x - 0.15, y - 0.15, 0.3, 0.3, colour)
        axes.text(x + 0.3, y, text, va="center", fontsize=7)
        x += 0.75 + 0.19 * len(text)


if __name__ == "__main__":
    sys.exit(main())
