"""Ping-pong between pairs of ranks: which pairs, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, TypeVar

from drl_mpi.comm.poller import Poller

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

MOST_PAIRS = 8
"""On hosts, and as many between hosts: enough to meet a bad one, and soon done."""
SMALL = 8
"""Bytes of a message whose latency counts."""
LARGE = 8_000_000
"""Bytes of a message whose bandwidth counts: about an unroll of 32 Atari environments."""
TAG = 3


@dataclass(frozen=True)
class Rally:
    """Messages to and fro, until there were enough or time is up."""

    size: int
    """Bytes of each."""
    most: int
    seconds: float


RALLIES = (Rally(SMALL, 1000, 0.05), Rally(LARGE, 12, 0.15))


def choose_pairs(hosts: Sequence[str]) -> list[tuple[int, int]]:
    """Neighbours on each host, and one pair for each two hosts that follow each other, in turn.

    Args:
        hosts: name of every rank's host.
    """
    ranks: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        ranks.setdefault(host, []).append(rank)
    # Every host's first pair comes before any host's second one.
    pairs = [
        (i, on[i], on[i + 1])
        for on in ranks.values()
        for i in range(len(on) - 1)
        if i % 2 == 0 or i == len(on) - 2  # an odd one out plays too
    ]
    first = [(a, b) for i, a, b in pairs if i == 0]
    near = first if len(first) >= MOST_PAIRS else [(a, b) for _, a, b in sorted(pairs)]
    lead = [on[0] for on in ranks.values()]
    far = list(pairwise(lead))
    turns = zip_longest(spread(near, MOST_PAIRS), spread(far, MOST_PAIRS))
    return [pair for turn in turns for pair in turn if pair is not None]


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of the items, evenly chosen, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def play(comm: MPI.Comm, peer: int, serves: bool, timeout_s: float) -> tuple[float, float]:
    """Plays all rallies with a peer, who calls this too.

    Args:
        comm: of both.
        peer: the other's rank.
        serves: whether this rank begins; it measures.
        timeout_s: seconds after which a message counts as lost.

    Returns:
        Latency in us and bandwidth in GB/s, one way.

    Raises:
        SilenceError: when the peer does not answer in time.
    """
    poller = Poller(timeout_s)
    poller.be_brisk(spin_s=0.02)  # yields the core meanwhile
    small, large = (_rally(comm, peer, serves, rally, poller) for rally in RALLIES)
    return 1e6 * small, LARGE / 1e9 / max(large, 1e-9)


def _rally(comm: MPI.Comm, peer: int, serves: bool, rally: Rally, poller: Poller) -> float:
    """Median seconds of one way; the server's last message says that it is."""
    ours, theirs = bytearray(rally.size), bytearray(rally.size)

    def send() -> None:
        request = comm.Isend(ours if serves else theirs, dest=peer, tag=TAG)
        poller.wait(lambda: request.Test() or None, f"rank {peer} to take a message")

    def receive() -> None:
        request = comm.Irecv(theirs, source=peer, tag=TAG)
        poller.wait(lambda: request.Test() or None, f"a message of rank {peer}")

    times: list[float] = []
    began = time.perf_counter()
    while not (ours if serves else theirs)[0]:
        if serves:
            start = time.perf_counter()
            ours[0] = len(times) + 1 >= rally.most or start - began > rally.seconds
            send()
            receive()
            times.append((time.perf_counter() - start) / 2)
        else:
            receive()
            send()
    # The first message also makes the connection.
    return statistics.median(times[1:] or times or [0.0])
