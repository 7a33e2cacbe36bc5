"""A job whose ranks write down in which order they start: ``noted_job.py NAME OPTIONS``.

``$DRL_TEST_NOTES/RANK`` gets a line for each of these, when it is done: "opened" (environments;
"opened-nicely" where the rank gives way to others by then), "replay", "loss", "outliers"
(restored), "filled" (the servers), "met" (all ranks, loaded). All ranks share one core.
"""

import importlib
import os
import sys
from pathlib import Path

from drl_mpi import envs
from drl_mpi.comm.shards import ShardClient
from drl_mpi.comm.world import World
from drl_mpi.experience.replay import UniformReplay
from drl_mpi.run.launch import main
from drl_mpi.systems.q_loss import QLoss
from drl_mpi.updating.outliers import OutlierFilter

NOTES = Path(os.environ["DRL_TEST_NOTES"]) / os.environ["OMPI_COMM_WORLD_RANK"]

NICENESS = os.nice(0)


LOADED = "the other ranks to load"
"""What ranks wait for in that one of their meetings."""


def note(owner, name, line):
    call = getattr(owner, name)

    def noted(*arguments):
        result = call(*arguments)
        if line == "met" and LOADED not in arguments:
            return result
        nicely = "-nicely" if owner is envs and os.nice(0) > NICENESS else ""
        with NOTES.open("a") as file:
            file.write(f"{line}{nicely}\n")
        return result

    setattr(owner, name, noted)


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    note(envs, "make", "opened")
    note(UniformReplay, "restore", "replay")
    note(QLoss, "restore", "loss")
    note(OutlierFilter, "restore", "outliers")
    note(ShardClient, "load", "filled")
    note(World, "meet", "met")
    main(importlib.import_module(f"drl_mpi.systems.{sys.argv.pop(1)}").PRESETS)
