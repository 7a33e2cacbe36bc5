"""Programs under mpirun that play scenarios: a launch costs as much as ten of them, so it has many.

The ``mpirun`` fixture puts this file on the path of the ranks.
"""

import sys
import traceback

from drl_mpi.comm.poller import Poller
from drl_mpi.comm.world import connect

SCENARIOS = {}


def scenario(function):
    """Makes ``function(world, tag, *arguments)`` a scenario by its name."""
    SCENARIOS[function.__name__] = function
    return function


def meet(world, progress=lambda: None):
    """A barrier that does not spin."""
    world.meet(Poller(60.0), "all ranks", progress)


def main(names, *arguments, spacing=10):
    """Plays the named scenarios in the order in which they stand.

    Prints "ok SCENARIO" when all ranks have got through one; the first failure ends the job.
    ``spacing``: tags that each may use, from the one that it is given.
    """
    world = connect()
    try:
        for number, (name, play) in enumerate(SCENARIOS.items()):
            if name not in names:
                continue
            play(world, 100 + spacing * number, *arguments)
            meet(world)
            if world.rank == 0:
                print("ok", name, flush=True)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        world.abort(1)
    world.leave()
