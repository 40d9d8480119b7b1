"""All that knows Horovod and MPI: the world, what moves in it, and how it ends when a rank fails.

Importing it changes nothing: `World.join` sets what MPI and Horovod read, and starts them.
"""
