"""The last rank never leaves MPI; the others give it a second."""

import os
import signal

from drl_mpi.comm.poller import Poller
from drl_mpi.comm.world import connect

world = connect()
world.meet(Poller(60.0), "all ranks")
if world.rank == world.size - 1:
    os.kill(os.getpid(), signal.SIGSTOP)
world.leave(1.0)
print("left")
