"""Watch over the launcher: no rank outlives it, and what `horovodrun` is told reaches the run.

`horovodrun` becomes the shell that runs `mpirun`. A signal to it ends the shell alone, and mpirun goes on without it:
so a rank beside mpirun takes the shell's end for the signal. `launch/run` and `resist_hvd.reproduce` pass signals on,
but KILL.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

from resist_hvd.guard import endings
from resist_hvd.guard.endings import LOST
from resist_hvd.guard.signals import SignalHandler

if TYPE_CHECKING:
    from resist_hvd.comm.world import World

INTERVAL = 1.0
"""Seconds between two looks."""


def watch_launcher(world: World, signals: SignalHandler) -> None:
    """Begin to watch the process that started this rank, if a launcher of Open MPI has."""
    if "OMPI_COMM_WORLD_RANK" in os.environ and os.getppid() != 1:
        arguments = (world, signals, os.getppid())
        threading.Thread(target=_watch, args=arguments, name="launcher", daemon=True).start()


def shell_around(launcher: int) -> int:
    """Return the process that started this launcher if it is one whose end means the run's, else 0.

    That is the shell that `horovodrun` has become, or `launch/run` is; or `resist_hvd.reproduce`.
    """
    with suppress(psutil.Error):
        shell = psutil.Process(launcher).parent()
        words = [*(shell.cmdline() if shell else []), "", "", ""]
        is_script = words[1].endswith(("launch/run", "resist-hvd-reproduce"))
        is_horovodrun = words[1] == "-c" and words[2].startswith("mpirun ")
        if is_script or is_horovodrun or "resist_hvd.reproduce" in words:
            return int(shell.pid)
    return 0


def _watch(world: World, signals: SignalHandler, launcher: int) -> None:
    shell = shell_around(launcher)
    while True:
        time.sleep(INTERVAL)
        if os.getppid() != launcher:
            ending = endings.ending
            if ending.begin(LOST):
                message = f"The launcher has gone [{ending.whereabouts()}]. {ending.advice}"
                ending.exit_now(message, LOST, 0.2 * world.local_rank)
            return
        with suppress(psutil.NoSuchProcess):  # the launcher has gone meanwhile
            if shell and psutil.Process(launcher).ppid() != shell:
                shell = 0
                signals.handle(signal.SIGTERM, cause="the end of what started mpirun")
