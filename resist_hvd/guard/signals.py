"""Signals that ask a run to end: the first stops it once a round is done, the second at once.

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
from typing import TYPE_CHECKING

from resist_hvd import console
from resist_hvd.guard import endings, starting

if TYPE_CHECKING:
    from resist_hvd.comm.world import World

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""The signals that stop a run: cancelled, Ctrl-C, and the one that a scheduler sends ahead of a limit."""

AT_ONCE = 2.0
"""Seconds within which signals count as one: launchers pass on to all ranks what a scheduler sends to them, too."""


def name_of(number: int) -> str:
    """Return a signal's name as `kill` takes it: USR2."""
    return signal.Signals(number).name.removeprefix("SIG")


def ignore_limits() -> None:
    """Ignore the signal that a scheduler sends ahead of a limit: the program ends by itself; the main thread calls it.

    Python takes its own handlers away while it ends, so a handler that does nothing would leave a process to be killed.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


class SignalHandler:
    """Answers signals for a world, from a thread of its own; made by the main thread.

    Args:
        world: all ranks.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._stopped_at = 0.0
        starting.ignore_hangup()  # MPI may have thought otherwise
        self._received, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        self._wakeup = wakeup  # Python writes to its descriptor for as long as this process lives
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        for number in STOPPING:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._handle_all, name="signals", daemon=True).start()

    def _handle_all(self) -> None:
        while True:
            for number in self._received.recv(64):
                if number in STOPPING:
                    self.handle(number)

    def handle(self, number: int, cause: str = "") -> None:
        """Do what a signal asks for.

        Args:
            number: the signal.
            cause: what to call it; its name by default.
        """
        world, cause = self._world, cause or name_of(number)
        if endings.ending.status is not None:  # a launcher ends the others once one rank has ended
            endings.ending.reported.wait(timeout=1.0)
            os._exit(endings.ending.status)
        if world.stop.complete and number == signal.SIGUSR2:
            return
        if world.stop.signal == 0 and world.stop.heeded:
            self._stop_soon(number, cause)
        elif world.stop.signal == 0 or time.monotonic() - self._stopped_at > AT_ONCE:
            self._end_at_once(number, cause)

    def _stop_soon(self, number: int, cause: str) -> None:
        """Have the run stop when its round is done: all ranks learn of it in the message that ends a round."""
        world, ending = self._world, endings.ending
        world.stop.signal, self._stopped_at = number, time.monotonic()
        if not world.is_first:
            return
        opening = f"Told to stop by {cause} [{world.position}]"
        if ending.watchdog and (silent := ending.watchdog.silent_ranks()):
            # A launcher that has lost a host tells so, too, and kills a second later.
            endings.say(f"{opening}, and the round cannot be ended without all ranks. {silent}. {ending.advice}")
        else:
            # Without checkpoints of ours it is a loop of the user's, which has to ask.
            ends = "a checkpoint is written" if world.stop.resumable else "the program is told"
            run_ends = ", and the run ends" if world.stop.resumable else " (Rounds.stopping)"
            console.urgent(
                f"{opening}: {ends} when the round is done{run_ends}. A second signal ends it at once. "
                f"Until then: {ending.advice}"
            )

    def _end_at_once(self, number: int, cause: str) -> None:
        """End this rank; the lowest rank that lives says so, unless one that failed has spoken before.

        Open MPI's launcher kills what has not ended a second after TERM, and all the rest as soon as one rank has
        ended: so a rank that is not the first does not end before the first had time to speak.
        """
        world, ending = self._world, endings.ending
        again = world.stop.signal != 0
        # A second signal asks for an end without a checkpoint. A first one, where there is nothing to save, for a stop.
        status = 128 + number if again or not world.stop.resumable else endings.STOPPED
        if not ending.begin(status):
            return
        if again:
            why = "the second signal"
        elif world.size > 1:
            why = "a rank died (its launcher names it) or the job was cancelled"
        else:
            why = "it was cancelled"
        patience = 0.1 if world.is_first else 0.6 + 0.05 * min(world.rank, 5)
        message = f"Told to stop by {cause}: {why} [{ending.whereabouts()}]. {ending.advice}"
        ending.exit_now(message, status, patience)
