"""How findings say where, and how much."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")

FEW = 4


def few(items: Iterable[object]) -> str:
    """Names the first ones and counts the others: ``a, b, c and 5 more``."""
    texts = [str(item) for item in items]
    if len(texts) <= FEW:
        return ", ".join(texts)
    return f"{', '.join(texts[: FEW - 1])} and {len(texts) - FEW + 1} more"


def size(count: float) -> str:
    """Bytes, in the unit that suits them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.0f} KB"


def span(numbers: Iterable[int]) -> str:
    """``4`` if all are equal, else ``2 to 4``."""
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def count(number: int, thing: str) -> str:
    """``1 rank``, ``2 ranks``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def by_value(hosts: dict[str, T]) -> str:
    """One value if all hosts agree; else each value with the hosts that have it."""
    groups: dict[T, list[str]] = {}
    for host, value in hosts.items():
        groups.setdefault(value, []).append(host)
    if len(groups) == 1:
        return str(next(iter(groups)))
    return "; ".join(f"{value} on {few(names)}" for value, names in groups.items())


def where(bad: Sequence[str], all_hosts: Sequence[str] | dict[str, object]) -> str:
    """The hosts on which something is wrong."""
    if len(all_hosts) > 1 and len(bad) == len(all_hosts):
        return f"all {len(bad)} hosts"
    return few(bad)


def least(hosts: dict[str, T], key: Callable[[T], float]) -> tuple[str, T]:
    """The host with the smallest value, and that."""
    host = min(hosts, key=lambda name: key(hosts[name]))
    return host, hosts[host]
