"""The look of all pictures: that of jobs/plot.py."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from drl_mpi.run.plot import COLOURS, STYLE, SUFFIXES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, BLACK = COLOURS
LIGHT, GREY = "#c8c8c8", "#808080"


def picture_path(text: str) -> Path:
    """An option that names a picture. Raises ArgumentTypeError for what cannot be one."""
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise ArgumentTypeError(
            f"{text!r} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )
    if not path.absolute().parent.is_dir():
        raise ArgumentTypeError(f"{text!r}: there is no folder {str(path.parent)!r}; make it first")
    return path


@contextmanager
def picture(output: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """An empty figure in this style, which is written to ``output`` at the end.

    Args:
        output: a .png, .pdf or .svg.
        size: in inches.

    Raises:
        ImportError: without matplotlib.
    """
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(output, dpi=150)


def caption(figure: Figure, title: str, note: str) -> None:
    """What was measured, above, and on what, in the corner below."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    figure.text(0.99, 0.01, note, ha="right", va="bottom", color=GREY, fontsize=7)
