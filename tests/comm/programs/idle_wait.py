"""2 ranks: rank 1 waits for a message that rank 0 sends after SECONDS.

Rank 1 prints: seconds waited, seconds of CPU burnt meanwhile, idle seconds by its poller's account.
"""

import sys
import time

import numpy as np

from drl_mpi.comm.mpi import MPI
from drl_mpi.comm.poller import Poller
from drl_mpi.comm.world import connect

world = connect()
seconds = float(sys.argv[1])
buffer = np.zeros(1 << 20, np.uint8)
if world.rank == 1:
    poller = Poller(30.0)
    request = world.comm.Recv_init([buffer, MPI.BYTE], source=0, tag=5)
    request.Start()
    world.comm.send(None, 0, tag=6)
    began, cpu = time.perf_counter(), time.process_time()
    poller.wait(lambda: request.Test() or None, "rank 0")
    cpu, waited = time.process_time() - cpu, time.perf_counter() - began
    assert (buffer == 7).all()
    print(waited, cpu, poller.idle_s, flush=True)
    request.Free()
else:
    world.comm.recv(source=1, tag=6)
    time.sleep(seconds)
    buffer[:] = 7
    request = world.comm.Issend([buffer, MPI.BYTE], 1, tag=5)
    Poller(30.0).wait(lambda: request.Test() or None, "rank 1")
world.leave()
