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

from drl_mpi.bench.command import Parser, draw_or_say, guard, split_job_options
from drl_mpi.bench.style import BLUE, GREEN, GREY, LIGHT, ORANGE, picture
from drl_mpi.errors import UsageError
from drl_mpi.run.launch import parse
from drl_mpi.run.layout import Layout, Placement, Role, plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from drl_mpi.systems.system import System

SYSTEMS = ("impala", "gorilla", "a3c", "ga3c", "dqn")
COLOUR = {Role.LEARNER: BLUE, Role.SERVER: ORANGE, Role.ACTOR: LIGHT}
ORDER = (Role.LEARNER, Role.SERVER, Role.ACTOR)
ACROSS = 4
"""Ranks of a host that are drawn beside one another."""


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
    parser.add_argument("--system", choices=SYSTEMS, default=SYSTEMS[0])
    parser.add_argument("--nodes", type=int, default=1, help="hosts")
    parser.add_argument("--ntasks-per-node", type=int, default=16, help="ranks of each")
    parser.add_argument("--gpus-per-node", type=int, default=0, help="GPUs of each")
    parser.add_argument("--output", type=Path, help="a picture (needs matplotlib)")
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
    hosts = list(dict.fromkeys(place.host for place in layout.ranks))
    most = max(layout.ranks_on(host) for host in hosts)
    rows = -(-most // ACROSS)
    with picture(output, (2.2 * min(len(hosts), 4) + 0.4, 0.62 * rows + 1.5)) as figure:
        axes = figure.subplots()
        where = {
            place.rank: (
                hosts.index(place.host) * (ACROSS + 1.0) + place.local_rank % ACROSS,
                -float(place.local_rank // ACROSS),
            )
            for place in layout.ranks
        }
        for host in hosts:
            left = hosts.index(host) * (ACROSS + 1.0) - 0.6
            _box(axes, left, -rows + 0.35, ACROSS + 0.2, rows + 0.6, "none", edge=GREY)
            axes.text(left + 0.15, 0.7, host, va="center", color=GREY, fontsize=8)
        for place in layout.ranks:
            _rank(axes, place, *where[place.rank], relays=place.rank in relays)
        for place in layout.ranks:
            if published and place.role is Role.ACTOR:
                source = layout.publisher_to(place.rank)
                if layout.ranks[source].host != place.host:
                    _arrow(axes, where[source], where[place.rank])
        _legend(axes, -rows - 0.15, {place.role for place in layout.ranks}, relays=bool(relays))
        axes.set(xlim=(-0.8, len(hosts) * (ACROSS + 1.0) - 0.6), ylim=(-rows - 0.5, 1.3))
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
