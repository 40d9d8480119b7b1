"""How a program ends when something is wrong: one message, on all ranks, within seconds, and never status 0."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any, NoReturn

from resist_hvd.comm.launch import host_name, launched_rank
from resist_hvd.comm.world import World
from resist_hvd.errors import UserError

INTERNAL_ERROR = 70
"""Exit status for a defect of ours, or of a library, after sysexits' EX_SOFTWARE."""

PATIENCE = 10.0
"""Seconds for which a rank that finds fault before there is a world leaves it to rank 0 to say so: all ranks read the
same flags, and a launcher ends the others once one has ended."""


def run(program: Callable[[], None]) -> None:
    """Run a program's main function and end the process as it deserves.

    A `UserError` that every rank raises (agreed on by `World.agree`, or from before there was a world) is printed by
    rank 0, and all exit. Anything else may have happened on this rank alone, with others waiting for it: this rank
    says where it was, and takes the world down.
    """
    try:
        program()
    except UserError as error:
        world = current_world()
        if error.everywhere:
            leave(str(error) if launched_rank() == 0 else "", error.exit_status)
        if world is None:
            if launched_rank() > 0:
                time.sleep(PATIENCE)
                error.where = ", ".join(filter(None, (error.where, whereabouts())))
            leave(str(error), error.exit_status)
        error.where = ", ".join(filter(None, (error.where, whereabouts())))
        take_down(str(error), error.exit_status)
    except KeyboardInterrupt:  # from before `watch`
        leave(f"Told to stop by SIGINT. {advice()}" if launched_rank() == 0 else "", 128 + signal.SIGINT)
    except Exception as error:
        message = f"{type(error).__name__}: {error} [{whereabouts()}]. {advice()}"
        take_down(message, INTERNAL_ERROR, details=traceback.format_exc())


@contextmanager
def printed_once() -> Iterator[None]:
    """Have only rank 0 print what every rank would, before there is a world: the help."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if launched_rank() else nullcontext():
        yield


def whereabouts() -> str:
    """Return this rank, its host, and what it was doing."""
    world = current_world()
    if world is None:
        return f"rank {launched_rank()} on {host_name()}, starting"
    return f"rank {world.rank} of {world.size} on {world.host}, {world.position}"


def leave(message: str, status: int) -> NoReturn:
    """End this process, all others doing the same; with a message if there is one."""
    _ending.set()
    if message:
        say(message)
    sys.exit(status)


def take_down(message: str, status: int, details: str = "") -> NoReturn:
    """Say what happened here, unless another rank has said what happened to it, and end all ranks.

    Args:
        message: what happened.
        status: the exit status.
        details: what to print before it: a traceback.
    """
    _ending.set()
    world = current_world()
    if world is None or world.size == 1:
        say(message, details)
        sys.exit(status)
    # What breaks on one rank breaks calls on the others, and what is wrong with all of them need be said only once.
    if _news is None or not _news.heard(patience=0.0 if world.is_first else 1.0 + 0.1 * min(world.rank, 20)):
        say(message, details)
        if _news is not None:
            _news.spread()
    world.comm.Abort(status)
    sys.exit(status)


def say(message: str, details: str = "") -> None:
    """Print one message to standard error in one write, so that lines of different ranks do not mix."""
    os.write(sys.stderr.fileno(), f"{details}resist_hvd: {message}\n".encode())


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


_world: World | None = None
_news: News | None = None
_ending = threading.Event()
_wakeup = socket.socketpair()
_wakeup[0].setblocking(False)
_advice = "Nothing was saved yet: begin again."


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


def watch(world: World) -> None:
    """Have failures tell where `world` was, and answer a signal to end even while a library call blocks.

    When a rank dies the launcher sends the others TERM. Python's own handlers wait until the main thread is back in
    the interpreter, which it never is while it waits for the dead rank; a thread that reads the wake-up descriptor is.
    All ranks must call it together.
    """
    global _world, _news
    _world, _news = world, News(world)
    signal.set_wakeup_fd(_wakeup[0].fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_answer_signals, args=(world, _news), name="signals", daemon=True).start()


def _answer_signals(world: World, news: News) -> None:
    """End this rank at the first signal; the lowest rank that lives says so, unless one that failed has spoken before.

    Open MPI's launcher kills what has not ended a second after TERM, and all the rest as soon as one rank has ended: so
    a rank that is not the first does not end before the first had time to speak.
    """
    received = signal.Signals(_wakeup[1].recv(1)[0])
    patience = 0.1 if world.is_first else 0.6 + 0.05 * min(world.rank, 5)
    if not _ending.is_set() and not news.heard(patience):
        cause = "a rank died (its launcher names it) or the job was cancelled" if world.size > 1 else "it was cancelled"
        say(f"Told to stop by {received.name}: {cause} [{whereabouts()}]. {advice()}")
        news.spread()
    os._exit(128 + received)
