"""The last rank never comes to MPI_Init: what others say, and that they end."""

import sys
import time

from drl_mpi.comm.guard import Guard
from drl_mpi.run.launcher import launched_ranks

rank, size = launched_ranks()
if rank == size - 1:
    time.sleep(60)
if sys.argv[1:] == ["doctor"]:
    from drl_mpi.run.doctor import main as doctor

    doctor.START_S = 1.5
    sys.exit(doctor.main([]))

guard = Guard(rank)
with guard.bounded(1.5, "MPI_Init"):
    from drl_mpi.comm.world import connect

    connect()
