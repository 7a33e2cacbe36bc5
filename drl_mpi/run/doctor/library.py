"""The MPI library: loading it only when asked, starting it, and taking leave.

``import mpi4py.MPI`` fails where there is no library, so nothing here imports it at the top.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drl_mpi.run.doctor import look
from drl_mpi.run.doctor.facts import Launcher, Mpi

if TYPE_CHECKING:
    from mpi4py import MPI


def start_on_all_ranks(launcher: Launcher) -> tuple[MPI.Comm | None, Mpi]:
    """Starts MPI, but not in a launch that cannot work, in which some libraries end the process.

    Raises whatever importing MPI raises where there is none.
    """
    from drl_mpi.comm.mpi import MPI
    from drl_mpi.comm.world import library_version

    name = " ".join(library_version().partition(",")[0].replace(" Version:", "").split())
    if not understand(launcher, name):
        return None, Mpi(name, "", size=1, ulfm=False, ulfm_active=False)
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_FUNNELED)
    comm = MPI.COMM_WORLD
    levels = {
        MPI.THREAD_SINGLE: "SINGLE",
        MPI.THREAD_FUNNELED: "FUNNELED",
        MPI.THREAD_SERIALIZED: "SERIALIZED",
        MPI.THREAD_MULTIPLE: "MULTIPLE",
    }
    try:
        comm.Get_failed().Free()
        ulfm = True
    except (NotImplementedError, MPI.Exception):
        ulfm = False
    level = levels[MPI.Query_thread()]
    return comm, Mpi(name, level, comm.Get_size(), ulfm, ulfm and look.ulfm_active())


def understand(launcher: Launcher, library: str) -> bool:
    """Whether a library could hear of the other ranks from this launcher."""
    open_mpi = library.startswith("Open MPI")
    return launcher is not (Launcher.HYDRA if open_mpi else Launcher.MPIRUN)


def finalize() -> None:
    """Takes an orderly leave of MPI. Collective."""
    from drl_mpi.comm.mpi import MPI

    MPI.Finalize()


def abort(code: int) -> None:
    """Ends all ranks at once, since some of them are stuck."""
    from drl_mpi.comm.mpi import MPI

    MPI.COMM_WORLD.Abort(code)
