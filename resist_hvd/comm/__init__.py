"""All that knows Horovod and MPI: the world, what moves in it, and how it ends when a rank fails."""

import mpi4py

from resist_hvd.comm.launch import prepare_environment

# Importing these modules starts nothing, so that a wrong flag is told, and help printed, without a world. MPI reads its
# environment when `World.join` starts it.
mpi4py.rc.initialize = False
mpi4py.rc.finalize = True
prepare_environment()
