"""The last words of a process: where it was, what to do next, and that no other need say it again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from resist_hvd import console
from resist_hvd.comm.launch import host_name, launched_rank
from resist_hvd.comm.world import World
from resist_hvd.guard import outcome

LOST = 69
"""Exit status where a rank or the launcher was lost, after sysexits' EX_UNAVAILABLE: start it again."""

STOPPED = 75
"""Exit status of a run that was told to stop and has everything saved, after sysexits' EX_TEMPFAIL: go on with it."""


class News:
    """Lets ranks know that one of them has told of a failure, so that the others, which it takes down, need not.

    Args:
        world: all ranks, which make this together.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._comm: Any = world.comm.Dup()

    def spread(self) -> None:
        """Tell all other ranks; those that cannot be reached within a moment stay ignorant."""
        others = [rank for rank in range(self._world.size) if rank != self._world.rank]
        requests = [self._comm.Isend(bytearray(1), dest=rank) for rank in others]
        end = time.monotonic() + 0.3
        while not all(request.Test() for request in requests) and time.monotonic() < end:
            time.sleep(0.001)

    def heard(self, patience: float) -> bool:
        """Return whether another rank has told, now or within `patience` seconds."""
        end = time.monotonic() + patience
        while not self._comm.Iprobe():
            if time.monotonic() >= end:
                return False
            time.sleep(0.001)
        return True


class Ending:
    """The end of this process: decided once, by whichever of its threads comes first.

    Attributes:
        status: the exit status, None as long as it goes on.
        spoken: set once there is nothing more to say.
        before: called with the status when the end is decided on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.status: int | None = None
        self.spoken = threading.Event()
        self.before: Callable[[int], None] | None = None

    def begin(self, status: int) -> bool:
        """Decide on the end and its exit status; return whether nobody had before."""
        with self._lock:
            if self.status is not None:
                return False
            self.status = status
        if self.before is not None:
            self.before(status)
        console.briefly(lambda: outcome.end(status))
        return True


ending = Ending()
_world: World | None = None
_news: News | None = None
_advice = "Nothing was saved yet: begin again."
_let_go: Callable[[], None] | None = None


def joined(world: World) -> None:
    """Have messages tell where `world` was; all ranks must call it together."""
    global _world, _news
    _world, _news = world, News(world)


def current_world() -> World | None:
    """Return the world that this process has joined, if it has."""
    return _world


def advice() -> str:
    """Return what to do after a failure, as the program last told it."""
    return _advice


def advise(sentence: str) -> None:
    """Say what a user should do if the program ended now: which checkpoint to resume from."""
    global _advice
    _advice = sentence


def let_go_by(action: Callable[[], None]) -> None:
    """Have an end at once, which leaves no `finally` a chance, do this before."""
    global _let_go
    _let_go = action


def whereabouts() -> str:
    """Return this rank, its host, and what it was doing."""
    if _world is None:
        return f"rank {launched_rank()} on {host_name()}, starting"
    return f"rank {_world.rank} of {_world.size} on {_world.host}, {_world.position}"


def say(message: str, details: str = "") -> None:
    """Print one message to standard error in one write, so that lines of different ranks do not mix."""
    write(f"{details}resist_hvd: {message}\n")


def write(text: str) -> None:
    """Write lines to standard error, unless whoever read it has gone."""
    console.urgent(text.removesuffix("\n"))


def say_unless_said(message: str, patience: float, details: str = "") -> None:
    """Say what happened, unless another rank says within `patience` seconds what happened to it."""
    if _news is None or not _news.heard(patience):
        say(message, details)
        if _news is not None:
            _news.spread()


def end_now(message: str, status: int, patience: float) -> NoReturn:
    """End this process from a thread beside the main one, which may wait in a library for ever.

    Args:
        message: what happened; said unless another rank says within `patience` seconds what happened to it.
        status: the exit status.
        patience: in seconds.
    """
    # The libraries may be in no state to tell the others anything, and this rank must not wait for them either.
    last = threading.Timer(patience + 3.0, os._exit, args=(status,))
    last.daemon = True
    last.start()
    say_unless_said(message, patience)
    if _let_go is not None:  # within a moment: what it lets go of may be on a disk that does not answer
        console.briefly(_let_go)
    ending.spoken.set()
    os._exit(status)
