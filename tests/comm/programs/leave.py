"""The last rank never leaves MPI, and the others give it a second; or all do, and stay on."""

import os
import signal
import sys
import time

from drl_mpi.comm.poller import Poller
from drl_mpi.comm.world import connect

world = connect()
world.meet(Poller(60.0), "all ranks")
if world.rank == world.size - 1 and sys.argv[1:] != ["stay"]:
    os.kill(os.getpid(), signal.SIGSTOP)
world.leave(1.0)
time.sleep(1.5)
print("left")
