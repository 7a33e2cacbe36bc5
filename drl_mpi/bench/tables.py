"""Text in columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def columns(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a table.

    Args:
        head: names of the columns.
        rows: their cells.
        left: so many first columns are words; the others are numbers, and end alike.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in (head, *rows)
    ]


def spread(values: Sequence[float]) -> str:
    """The range of some rates; nothing for a single one."""
    return f"{min(values):,.0f} to {max(values):,.0f}" if len(values) > 1 else ""
