"""Joining the world under the guards that a program has while it works."""

from __future__ import annotations

from contextlib import AbstractContextManager

from resist_hvd.comm.devices import DeviceName
from resist_hvd.comm.world import World
from resist_hvd.guard import failure, starting
from resist_hvd.guard.watchdog import leave_stalls_to_watchdog, watched


def joined(device: DeviceName, watchdog: float | None) -> tuple[World, AbstractContextManager[object]]:
    """Join all processes into one world, within a time limit; have signals and failures answered from then on.

    Args:
        device: as of `World.join`.
        watchdog: as of `watched`.

    Returns:
        The world, and the context in which its ranks watch one another.

    Raises:
        UserError: the ranks do not form one world, or there is no such device.
    """
    leave_stalls_to_watchdog(watchdog)
    with starting.limited(watchdog):
        world = World.join(device)
        failure.watch(world)
        return world, watched(world, watchdog)
