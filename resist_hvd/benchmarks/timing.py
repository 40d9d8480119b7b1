"""Seconds of what all ranks begin together."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from resist_hvd.comm.devices import finish
from resist_hvd.comm.world import World


def slowest(world: World, action: Callable[[], None]) -> float:
    """Return the seconds that the slowest rank takes for an action."""
    world.barrier()
    began = perf_counter()
    action()
    finish(world.device)
    return float(world.gather([perf_counter() - began]).max())


def mean_of_steps(world: World, step: Callable[[], object], steps: int) -> float:
    """Return this rank's seconds of a step, the mean of some."""
    world.barrier()
    began = perf_counter()
    for _ in range(steps):
        step()
    finish(world.device)
    return (perf_counter() - began) / steps
