"""Running a job, from the command line to checkpoints.

A process that imports this has all its threads share one arena of glibc's allocator. The arenas
that further threads would get give memory back as soon as it is freed: a trainer that computes
beside the thread that talks MPI then faults in every page of every activation, with each update
anew (measured: a sixth of its time). It has to be said before any library starts a thread.
"""

import ctypes
import sys

_M_ARENA_MAX = -8

if sys.platform.startswith("linux"):
    _mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if _mallopt is not None:  # another C library has other arenas, or none
        _mallopt(_M_ARENA_MAX, 1)
