"""MPI itself, initialised when we say so: everything in ``comm`` imports it from here."""

from __future__ import annotations

import os

import mpi4py

# UCX would take SIGHUP for its debugger: a job that starts would outlive its terminal.
os.environ.setdefault("UCX_DEBUG_SIGNO", "0")
mpi4py.rc(initialize=False, finalize=False)

from mpi4py import MPI  # noqa: E402 (rc must be set before MPI is imported)

__all__ = ["MPI"]
