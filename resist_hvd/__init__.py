"""ResIST: residual networks trained as independent sub-networks, on Horovod and MPI."""

__version__ = "0.1.0"
