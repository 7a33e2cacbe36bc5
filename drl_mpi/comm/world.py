"""The ranks of a job: who we are, who the others are, and how to end all of them."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from drl_mpi.comm.mpi import MPI
from drl_mpi.comm.poller import SILENCE_S, Poller


@dataclass(frozen=True)
class World:
    """All ranks of the job. Its methods pickle, and so are for start-up and checkpoints only."""

    comm: MPI.Comm
    """A duplicate of COMM_WORLD, so that no library's messages meet ours."""
    rank: int
    size: int

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank. Collective."""
        return self.comm.bcast(value, root=0)

    def gather(self, value: Any) -> list[Any] | None:
        """Every rank's value in rank order, at rank 0; ``None`` elsewhere. Collective."""
        return self.comm.gather(value, root=0)

    def group(self, ranks: Sequence[int]) -> Group | None:
        """A communicator of some ranks; ``None`` on the others. Collective over the world."""
        member = self.rank in ranks
        comm = self.comm.Split(0 if member else MPI.UNDEFINED, key=self.rank)
        return Group(comm) if member else None

    def meet(
        self, poller: Poller, what: str, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """As ``Group.meet``, of all ranks."""
        Group(self.comm).meet(poller, what, meanwhile)

    def share_flag(self, flag: bool, poller: Poller, what: str) -> bool:
        """Rank 0's flag, on every rank; waits without spinning. Collective."""
        value = np.array([flag], dtype=np.uint8)
        request = self.comm.Ibcast(value, root=0)
        poller.wait(lambda: request.Test() or None, what)
        return bool(value[0])

    def abort(self, code: int) -> None:
        """Ends every rank of the job at once. Nothing registered with atexit runs."""
        self.comm.Abort(code)

    @property
    def left(self) -> bool:
        """Whether ``leave`` was called."""
        return bool(MPI.Is_finalized())

    def leave(self, within_s: float = SILENCE_S) -> None:
        """Takes an orderly leave of MPI. Collective.

        MPI holds Python's lock meanwhile, so only faulthandler's own thread sees the time pass.

        Args:
            within_s: seconds after which this process ends with a traceback and code 1.
        """
        faulthandler.dump_traceback_later(within_s, exit=True, file=2)
        MPI.Finalize()
        faulthandler.cancel_dump_traceback_later()


class Group:
    """Some ranks that work in step, such as the learners.

    Args:
        comm: their communicator.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        self.comm = comm
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()

    def sum(self, values: npt.NDArray[np.float32], poller: Poller, what: str) -> None:
        """Replaces ``values`` by their sum over all members. Collective, and never spins.

        Args:
            values: float32, the same length on every member.
            poller: waits.
            what: what is waited for, for the error's text.
        """
        request = self.comm.Iallreduce(MPI.IN_PLACE, values, op=MPI.SUM)
        poller.wait(lambda: request.Test() or None, what)

    def gather(self, value: Any) -> list[Any] | None:
        """Every member's value in rank order, at member 0; ``None`` elsewhere. Pickles."""
        return [value] if self.size == 1 else self.comm.gather(value, root=0)

    def share(self, value: Any) -> Any:
        """Member 0's value, on every member. Collective. Pickles."""
        return value if self.size == 1 else self.comm.bcast(value, root=0)

    def meet(
        self, poller: Poller, what: str, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """Waits, without spinning, until every member is here. Collective.

        Args:
            poller: waits.
            what: what is waited for, for the error's text.
            meanwhile: called at every poll.
        """
        request = self.comm.Ibarrier()

        def ready() -> bool | None:
            meanwhile()
            return request.Test() or None

        poller.wait(ready, what)


def connect() -> World:
    """Initialises MPI, for one thread of calls per rank, and returns the world."""
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_FUNNELED)
    comm = MPI.COMM_WORLD.Dup()
    return World(comm, comm.Get_rank(), comm.Get_size())


def library_version() -> str:
    """First line of the MPI library's description of itself, e.g. ``Open MPI v5.0.11 ...``."""
    return MPI.Get_library_version().splitlines()[0].rstrip("\x00")
