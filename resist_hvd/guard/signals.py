"""Answers signals that ask a run to end: the first stops it once a round is done, the second at once.

A terminal that is closed (HUP) asks for nothing: the run goes on, as under `nohup`.

Python's own handlers wait until the main thread is back in the interpreter, which it never is while it waits in a
library for a rank that has died. A thread that reads the wake-up descriptor answers all the same.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

from resist_hvd.comm.world import World
from resist_hvd.guard import endings, starting

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""The signals that stop a run: cancelled, Ctrl-C, and what a scheduler sends ahead of a limit."""

AT_ONCE = 2.0
"""Seconds within which signals count as one: launchers pass on to all ranks what a scheduler sends to them, too."""

_wakeup = socket.socketpair()
_wakeup[0].setblocking(False)


def answer(world: World) -> None:
    """Begin to answer signals for `world`; from the main thread."""
    starting.ignore_hangup()  # MPI may have thought otherwise
    signal.set_wakeup_fd(_wakeup[0].fileno(), warn_on_full_buffer=False)
    for number in STOPPING:
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_answer_all, args=(world,), name="signals", daemon=True).start()


def name_of(number: int) -> str:
    """Return a signal's name as `kill` takes it: USR2."""
    return signal.Signals(number).name.removeprefix("SIG")


def _answer_all(world: World) -> None:
    while True:
        for number in _wakeup[1].recv(64):
            if number in STOPPING:
                told(world, number)


def told(world: World, number: int, cause: str = "") -> None:
    """Do what a signal asks for.

    Args:
        world: this rank's.
        number: the signal.
        cause: what to call it; its name by default.
    """
    cause = cause or name_of(number)
    if endings.ending.status is not None:  # a launcher ends the others once one rank has ended
        endings.ending.spoken.wait(timeout=1.0)
        os._exit(endings.ending.status)
    if world.stop_signal == 0 and world.can_stop:
        _stop_soon(world, number, cause)
    elif world.stop_signal == 0 or time.monotonic() - world.stop_told_at > AT_ONCE:
        _end_at_once(world, number, cause)


def _stop_soon(world: World, number: int, cause: str) -> None:
    """Have the run stop when its round is done: all ranks learn of it in the message that ends a round."""
    world.stop_signal, world.stop_told_at = number, time.monotonic()
    if not world.is_first:
        return
    opening = f"Told to stop by {cause} [{world.position}]"
    if silent := world.unheard():
        # A launcher that has lost a host tells so, too, and kills a second later.
        endings.say(f"{opening}, and the round cannot be ended without all ranks. {silent}. {endings.advice()}")
    else:
        endings.write(
            f"{opening}: a checkpoint is written when the round is done, and the run ends. A second signal ends it at "
            f"once. Until then: {endings.advice()}\n"
        )


def _end_at_once(world: World, number: int, cause: str) -> None:
    """End this rank; the lowest rank that lives says so, unless one that failed has spoken before.

    Open MPI's launcher kills what has not ended a second after TERM, and all the rest as soon as one rank has ended: so
    a rank that is not the first does not end before the first had time to speak.
    """
    again = world.stop_signal != 0
    # A second signal asks for an end without a checkpoint. A first one, where there is nothing to save, for a stop.
    status = 128 + number if again or not world.resumable else endings.STOPPED
    if not endings.ending.begin(status):
        return
    if again:
        why = "the second signal"
    else:
        why = "a rank died (its launcher names it) or the job was cancelled" if world.size > 1 else "it was cancelled"
    patience = 0.1 if world.is_first else 0.6 + 0.05 * min(world.rank, 5)
    message = f"Told to stop by {cause}: {why} [{endings.whereabouts()}]. {endings.advice()}"
    endings.end_now(message, status, patience)
