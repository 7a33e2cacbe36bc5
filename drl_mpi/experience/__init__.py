"""What actors make and where it goes: the unroll, the queue, the replay."""

from drl_mpi.experience.batch import Batch
from drl_mpi.experience.queue import UnrollQueue
from drl_mpi.experience.replay import PrioritizedReplay, UniformReplay
from drl_mpi.experience.source import Source
from drl_mpi.experience.sum_tree import SumTree
from drl_mpi.experience.transitions import TransitionBatch
from drl_mpi.experience.unroll import UnrollShape
from drl_mpi.experience.unroll_replay import UnrollReplay

__all__ = [
    "Batch",
    "PrioritizedReplay",
    "Source",
    "SumTree",
    "TransitionBatch",
    "UniformReplay",
    "UnrollQueue",
    "UnrollReplay",
    "UnrollShape",
]
