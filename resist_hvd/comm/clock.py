"""Offsets between the clocks of ranks, so that what they did can be put on one."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from resist_hvd.comm.world import World

EXCHANGES = 16
"""Questions that rank 0 asks each rank; the answer that came soonest says the most."""


def clock_offsets(world: World) -> list[float]:
    """Return for each rank by how many seconds its clock is ahead of rank 0's, on every rank.

    Cristian's algorithm (1989): rank 0 asks for a rank's time, and takes it for the time half-way between question and
    answer. It is wrong by no more than half of the shortest exchange. All ranks must call it together.
    """
    cell = np.zeros(1)
    offsets = np.zeros(world.size)
    with world.activity.waiting():
        for rank in range(1, world.size):
            if world.rank == rank:
                for _ in range(EXCHANGES):
                    world.comm.Recv(cell, source=0)
                    cell[0] = perf_counter()
                    world.comm.Send(cell, dest=0)
            elif world.is_first:
                soonest = np.inf
                for _ in range(EXCHANGES):
                    asked = perf_counter()
                    world.comm.Send(cell, dest=rank)
                    world.comm.Recv(cell, source=rank)
                    answered = perf_counter()
                    if answered - asked < soonest:
                        soonest = answered - asked
                        offsets[rank] = cell[0] - (asked + answered) / 2
        world.comm.Bcast(offsets, root=0)
    return [float(offset) for offset in offsets]
