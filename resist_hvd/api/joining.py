"""Joining the world of workers in a program of the user's own, and the end of all ranks together."""

from __future__ import annotations

import atexit
import sys
from types import TracebackType

from resist_hvd.comm.devices import DeviceName
from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.guard import failure
from resist_hvd.guard.judging import ENDING
from resist_hvd.training.joining import joined

_joined = False
"""Whether `join` was called: its guards are of the whole process."""


def join(device: DeviceName = "auto", *, watchdog: float | None = None) -> World:
    """Join all processes that the launcher started into one world of workers; call it once, first of all.

    From then on signals, lost ranks and exceptions end all ranks together, as in `resist_hvd.train`: an exception that
    nothing catches is told with its rank and host, and no rank is left waiting.

    Args:
        device: auto is cuda where there is a GPU.
        watchdog: seconds in which nothing moves, after which a rank counts as lost; None for what the rounds' own
            lengths suggest, 0 for never.

    Returns:
        The world: its `rank`, `size` and `device`, and small words among all ranks.

    Raises:
        UserError: the ranks do not form one world, or there is no such device.
    """
    global _joined
    if _joined:
        raise UserError("This process has joined a world already", mend="Call resist_hvd.join once.", everywhere=True)
    _joined = True
    failure.begin()
    failure.advise("Go on from what the program itself has saved.")
    world, guard = joined(device, watchdog)
    guard.__enter__()
    failed: list[BaseException] = []

    def end_by(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        failed.append(error)
        guard.__exit__(kind, error, trace)
        failure.end_by(error)
        sys.__excepthook__(kind, error, trace)

    def end() -> None:
        if not failed:
            failure.complete()
            world.position = ENDING
            world.barrier()  # from here on, nobody is waited for but to end
            guard.__exit__(None, None, None)
            failure.end()

    sys.excepthook = end_by
    atexit.register(end)
    return world
