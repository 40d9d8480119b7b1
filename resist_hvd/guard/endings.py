"""The end of this process: decided once, by whichever thread comes first, and reported by one rank for all."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from resist_hvd import console
from resist_hvd.comm.launch import host_name, launched_rank
from resist_hvd.guard import outcome

if TYPE_CHECKING:
    from resist_hvd.comm.world import World
    from resist_hvd.guard.watchdog import Watchdog

LOST = 69
"""Exit status where a rank or the launcher was lost, after sysexits' EX_UNAVAILABLE: start it again."""

STOPPED = 75
"""Exit status of a run that was told to stop and has everything saved, after sysexits' EX_TEMPFAIL: go on with it."""


class FailureNotice:
    """Message among ranks that one has reported a failure, so that the others, which it takes down, need not.

    Args:
        world: all ranks, which make this together.
    """

    def __init__(self, world: World) -> None:
        self._others = [rank for rank in range(world.size) if rank != world.rank]
        self._comm: Any = world.comm.Dup()

    def send(self) -> None:
        """Tell all other ranks; those that cannot be reached within a moment are not told."""
        requests = [self._comm.Isend(bytearray(1), dest=rank) for rank in self._others]
        end = time.monotonic() + 0.3
        while not all(request.Test() for request in requests) and time.monotonic() < end:
            time.sleep(0.001)

    def received(self, patience: float) -> bool:
        """Return whether another rank has sent it, now or within `patience` seconds."""
        end = time.monotonic() + patience
        while not self._comm.Iprobe():
            if time.monotonic() >= end:
                return False
            time.sleep(0.001)
        return True


class Ending:
    """End of this process, and all that its last message is made of.

    Attributes:
        world: the world that this process has joined, None before.
        watchdog: the one that watches it, None without.
        advice: the user's next step if the program ended now: the checkpoint to resume from.
        release: called before an exit that runs no `finally`.
        status: the exit status, None until the end is decided.
        reported: set once nothing is left to do but to exit.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notice: FailureNotice | None = None
        self.world: World | None = None
        self.watchdog: Watchdog | None = None
        self.advice = "Nothing was saved yet: begin again."
        self.release: Callable[[], None] | None = None
        self.status: int | None = None
        self.reported = threading.Event()

    def join(self, world: World) -> None:
        """Have messages tell where `world` was; all ranks call it together."""
        self.world, self._notice = world, FailureNotice(world)

    def begin(self, status: int) -> bool:
        """Decide on the end and its exit status; return whether it had not been decided before."""
        with self._lock:
            if self.status is not None:
                return False
            self.status = status
        if self.watchdog is not None:
            self.watchdog.leave(status)
        console.briefly(lambda: outcome.end(status))
        return True

    def whereabouts(self) -> str:
        """Return this rank, its host, and its present work."""
        if self.world is None:
            return f"rank {launched_rank()} on {host_name()}, starting"
        return f"rank {self.world.rank} of {self.world.size} on {self.world.host}, {self.world.position}"

    def report(self, message: str, patience: float, details: str = "") -> None:
        """Print what happened, unless another rank reports within `patience` seconds what happened to it."""
        if self._notice is None:
            say(message, details)
        elif not self._notice.received(patience):
            say(message, details)
            self._notice.send()

    def exit_now(self, message: str, status: int, patience: float) -> NoReturn:
        """End this process from a thread beside the main one, which may wait in a library for ever.

        Args:
            message: what happened.
            status: the exit status.
            patience: in seconds, as of `report`.
        """
        # The libraries may be in no state to tell the others anything, and this rank must not wait for them either.
        last = threading.Timer(patience + 3.0, os._exit, args=(status,))
        last.daemon = True
        last.start()
        self.report(message, patience)
        if self.release is not None:  # within a moment: what it lets go of may be on a disk that does not answer
            console.briefly(self.release)
        self.reported.set()
        os._exit(status)


ending = Ending()
"""The end of this process."""


def say(message: str, details: str = "") -> None:
    """Print one message to standard error in one write, so that lines of different ranks do not mix."""
    console.urgent(f"{details}resist_hvd: {message}")
