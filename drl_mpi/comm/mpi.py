"""MPI itself, initialised when we say so: everything in ``comm`` imports it from here."""

from __future__ import annotations

import mpi4py

mpi4py.rc(initialize=False, finalize=False)

from mpi4py import MPI  # noqa: E402 (rc must be set before MPI is imported)

__all__ = ["MPI"]
