"""Versions and abilities of this process's MPI and Horovod."""

from __future__ import annotations

import re
from dataclasses import dataclass

THREAD_LEVELS = ("single", "funneled", "serialized", "multiple")


@dataclass(frozen=True, kw_only=True)
class Libraries:
    """An MPI library and a build of Horovod.

    Attributes:
        mpi: make and version of the MPI library: "Open MPI v4.1.8".
        threads: which calls it takes from several threads: `multiple` is what this package needs.
        horovod: its version.
        with_mpi, with_nccl: what it was built with.
    """

    mpi: str
    threads: str
    horovod: str
    with_mpi: bool
    with_nccl: bool


def libraries() -> Libraries:
    """Return what this process has loaded; `World.join` has seen to it that there is one MPI library."""
    import horovod
    import horovod.torch as hvd
    from mpi4py import MPI

    return Libraries(
        mpi=re.split(r"[,\n]", MPI.Get_library_version())[0].strip(),
        threads=THREAD_LEVELS[
            (MPI.THREAD_SINGLE, MPI.THREAD_FUNNELED, MPI.THREAD_SERIALIZED, MPI.THREAD_MULTIPLE).index(
                MPI.Query_thread()
            )
        ],
        horovod=horovod.__version__,
        with_mpi=bool(hvd.mpi_built()),
        with_nccl=bool(hvd.nccl_built()),
    )
