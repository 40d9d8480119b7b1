"""Reaper of a launcher that outlives its ranks: where other hosts are cut off it waits for them for many minutes.

It runs as a program of its own, on the standard library alone, since the ranks are gone by then: the launcher's process
number and the seconds that it is given are its arguments. It ends as soon as the launcher has.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LAUNCHERS = ("mpirun", "orterun", "mpiexec", "orted")
"""Beginnings of the names of Open MPI's launchers (`orterun_wrapper` in its wheel); other parents are left alone."""

GRACE = 10.0
"""Seconds that a launcher is given beyond what it leaves its ranks: it ends within three, if it can."""

KILL_TIMEOUT = "OMPI_MCA_odls_base_sigkill_timeout"
"""Variable by which a user says how long Open MPI's launcher waits before it kills ranks, in seconds."""


def start() -> None:
    """Start the program that ends the launcher of this rank, if it does not end by itself."""
    if words := arguments():
        with contextlib.suppress(OSError):  # no descriptors or processes are left
            subprocess.Popen(
                [sys.executable, "-I", "-S", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # the launcher ends this rank's whole process group
            )


def arguments() -> list[str]:
    """Return Python's arguments that start it for the launcher of this rank, empty where that is not Open MPI's."""
    launcher = os.getppid()
    known = name_and_start(launcher)[0].startswith(LAUNCHERS)
    return [__file__, str(launcher), str(seconds_given())] if known else []


def seconds_given() -> float:
    """Return the seconds that the launcher may take: it waits twice before it kills its ranks."""
    try:
        return GRACE + 2 * float(os.environ[KILL_TIMEOUT])
    except (KeyError, ValueError):
        return GRACE


def name_and_start(process: int) -> tuple[str, str]:
    """Return a process's name and when it started, which together are it and no later one of its number."""
    try:
        name, _, others = Path(f"/proc/{process}/stat").read_text().rpartition(")")
        return name.partition("(")[2], others.split()[19]
    except (OSError, IndexError):
        return "", ""


def reap(launcher: int, seconds: float) -> None:
    """Wait for a process to end, and kill it after some seconds."""
    was = name_and_start(launcher)
    end = time.monotonic() + seconds
    while was[0] and name_and_start(launcher) == was:
        if time.monotonic() > end:
            with contextlib.suppress(ProcessLookupError):
                os.kill(launcher, signal.SIGKILL)
            return
        time.sleep(0.2)


if __name__ == "__main__":
    reap(int(sys.argv[1]), float(sys.argv[2]))
