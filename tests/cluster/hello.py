"""A program for tests of launchers: every rank sends 8 MB around a ring and says where it is."""

import socket

import numpy as np
from mpi4py import MPI

world = MPI.COMM_WORLD
sent = np.full(1_000_000, world.rank, dtype=np.float64)
received = np.empty_like(sent)
before, after = (world.rank - 1) % world.size, (world.rank + 1) % world.size
world.Sendrecv(sent, after, 0, received, before)
assert (received == before).all()
print(f"rank {world.rank} of {world.size} on {socket.gethostname()}", flush=True)
