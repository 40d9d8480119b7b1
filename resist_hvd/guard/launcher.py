"""Notices that the launcher has gone: no rank outlives it, and what `horovodrun` is told reaches the run.

`horovodrun` becomes the shell that runs `mpirun`. A signal to it ends the shell alone, and mpirun goes on without it:
so a rank beside mpirun takes the shell's end for the signal. `launch/run` passes signals on, but KILL.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from resist_hvd.comm.world import World
from resist_hvd.guard import endings, signals
from resist_hvd.guard.endings import LOST

INTERVAL = 1.0
"""Seconds between two looks."""


def watch_launcher(world: World) -> None:
    """Begin to watch the process that started this rank, if a launcher of Open MPI has."""
    parent = os.getppid()
    if "OMPI_COMM_WORLD_RANK" in os.environ and parent != 1:
        arguments = (world, parent, shell_around(parent))
        threading.Thread(target=_watch, args=arguments, name="launcher", daemon=True).start()


def parent_of(process: int) -> int:
    """Return a process's parent, 0 where it has none or is gone."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return 0


def shell_around(launcher: int) -> int:
    """Return the shell that `horovodrun` has become, or `launch/run` is, if it started this launcher; else 0."""
    shell = parent_of(launcher)
    try:
        words = Path(f"/proc/{shell}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return 0
    of_horovodrun = len(words) > 2 and words[1] == b"-c" and words[2].startswith(b"mpirun ")
    return shell if of_horovodrun or (len(words) > 1 and words[1].endswith(b"launch/run")) else 0


def _watch(world: World, parent: int, shell: int) -> None:
    while True:
        time.sleep(INTERVAL)
        if os.getppid() != parent:
            if endings.ending.begin(LOST):
                message = f"The launcher has gone [{endings.whereabouts()}]. {endings.advice()}"
                endings.end_now(message, LOST, 0.2 * world.local_rank)
            return
        if shell and parent_of(parent) != shell:
            shell = 0
            signals.told(world, signal.SIGTERM, cause="the end of what started mpirun")
