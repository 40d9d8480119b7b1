"""Steps that come before PyTorch is imported: cores are noted, and MPI is loaded where a site needs that.

The package runs this as it is first imported.
"""

from __future__ import annotations

import os
import sys

CORES = frozenset(os.sched_getaffinity(0))
"""Cores this process might run on when it started. Where OMP_PROC_BIND or OMP_PLACES is set, PyTorch's OpenMP library
ties the thread that loads it to one of them, so that the mask says too little afterwards."""


def import_mpi_first() -> None:
    """Load the MPI library if RESIST_HVD_IMPORT_MPI_FIRST is 1; by default where Cray's MPICH is loaded as a module.

    Sites with Cray's MPI ask for mpi4py before PyTorch. Nothing is started, and nothing is loaded elsewhere, so that
    help is quick.
    """
    by_default = "1" if "CRAY_MPICH_VERSION" in os.environ else "0"
    if os.environ.get("RESIST_HVD_IMPORT_MPI_FIRST", by_default) == "1":
        load_mpi()


def load_mpi() -> None:
    """Load mpi4py without starting MPI, which `World.join` does; what the user's program has loaded stays as it is."""
    if "mpi4py.MPI" not in sys.modules:
        import mpi4py

        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = True
        from mpi4py import MPI  # noqa: F401
