"""Networks: a torso, an optional LSTM core, and a head; no MPI, no losses."""

from drl_mpi.nets.factory import default_net, make
from drl_mpi.nets.flat import FlatParameters, load_flat, slices_of
from drl_mpi.nets.heads import Output, PolicyValue, QValues
from drl_mpi.nets.inference import inference_copy
from drl_mpi.nets.memory import keep_freed_memory
from drl_mpi.nets.network import Network

__all__ = [
    "FlatParameters",
    "Network",
    "Output",
    "PolicyValue",
    "QValues",
    "default_net",
    "inference_copy",
    "keep_freed_memory",
    "load_flat",
    "make",
    "slices_of",
]
