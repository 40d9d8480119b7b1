"""Baseline that a benchmark compares the transport with: the bare call of the MPI library."""

from __future__ import annotations

from torch import Tensor

from resist_hvd.comm.world import World


def allreduce_by_mpi(world: World, flat: Tensor) -> None:
    """Sum a contiguous buffer in host memory over all ranks, in place, by one MPI_Allreduce."""
    from mpi4py import MPI

    world.comm.Allreduce(MPI.IN_PLACE, flat.numpy())
