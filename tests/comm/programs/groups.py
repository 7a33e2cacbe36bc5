"""Ranks 0 to 2 of 4 in a group: what they share, and how they wait. ``groups.py``.

Prints "ok SCENARIO" when all ranks have got through one; the first failure ends the job.
"""

import sys
import time
import traceback

import numpy as np

from drl_mpi.comm.poller import Poller
from drl_mpi.comm.world import connect

LATE_S = 0.6
"""So much later than the others the last member comes."""


def nobody(world):
    """Who is not in a group gets none."""
    group = world.group((0, 2))
    assert (group is None) == (world.rank in (1, 3))
    if group is not None:
        assert (group.rank, group.size) == (world.rank // 2, 2)
    assert (world.group(()) is None) is True


def share(world):
    """Member 0's value, whoever that is in the world."""
    for ranks in ((0, 1, 2), (1, 2, 3), (3,)):
        group = world.group(ranks)
        if group is not None:
            value = group.share({"from": world.rank, "steps": 2**40 + world.rank})
            assert value == {"from": ranks[0], "steps": 2**40 + ranks[0]}


def gather(world):
    """Every member's value in their order, at member 0."""
    for ranks in ((0, 1, 2), (1, 2, 3), (3,)):
        group = world.group(ranks)
        if group is not None:
            values = group.gather((world.rank, "kept"))
            expected = [(rank, "kept") for rank in ranks]
            assert values == (expected if group.rank == 0 else None)


def meet(world):
    """Nobody goes on before the last is here; who waits sleeps, and it is accounted."""
    group = world.group((0, 1, 2))
    if group is None:
        return
    for last in range(3):
        group.meet(Poller(30.0), "a start together")
        poller = Poller(30.0)
        driven = []
        poller.background = lambda driven=driven: driven.append(1)
        began, cpu = time.perf_counter(), time.process_time()
        if group.rank == last:
            time.sleep(LATE_S)
        arrived = time.monotonic()  # one clock for all ranks of a host
        group.meet(poller, "the others")
        left = time.monotonic()
        waited, cpu = time.perf_counter() - began, time.process_time() - cpu
        times = world_times(group, arrived, left)
        assert min(left for _, left in times) >= max(arrived for arrived, _ in times)
        if group.rank != last:
            assert poller.idle_s > LATE_S / 2, "others' lateness is idle time"
            assert cpu < waited / 4, f"{cpu:.3f} s of CPU for {waited:.3f} s of waiting"
        assert driven, "what needs progress gets it meanwhile"


def world_times(group, arrived, left):
    """(arrived, left) of every member."""
    table = np.zeros((group.size, 2))
    table[group.rank] = arrived, left
    group.comm.Allreduce(table.copy(), table)
    return [tuple(row) for row in table]


def alone(world):
    """A single learner asks nobody."""
    for rank in range(world.size):
        group = world.group((rank,))
        if group is not None:
            value = object()
            assert group.share(value) is value
            assert group.gather(value) == [value]
            group.meet(Poller(1.0), "nobody")


def flag(world):
    """Rank 0's flag, on every rank."""
    for value in (True, False):
        own = value if world.rank == 0 else not value
        assert world.share_flag(own, Poller(30.0), "the first rank") is value


def main():
    world = connect()
    try:
        for scenario in (nobody, share, gather, meet, alone, flag):
            scenario(world)
            barrier = world.comm.Ibarrier()
            Poller(30.0).wait(lambda barrier=barrier: barrier.Test() or None, "all ranks")
            if world.rank == 0:
                print("ok", scenario.__name__, flush=True)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        world.abort(1)
    world.leave()


main()
