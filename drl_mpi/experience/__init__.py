"""What actors make and where it goes: the unroll, the queue, the replay."""

from drl_mpi.experience.batch import Batch
from drl_mpi.experience.queue import Source, UnrollQueue
from drl_mpi.experience.replay import UniformReplay
from drl_mpi.experience.unroll import UnrollShape

__all__ = ["Batch", "Source", "UniformReplay", "UnrollQueue", "UnrollShape"]
