"""ResIST: residual networks trained as independent sub-networks, on Horovod and MPI."""

from resist_hvd.comm import early

__version__ = "0.1.0"

early.import_mpi_first()
