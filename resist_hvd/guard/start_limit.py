"""Ends a rank whose MPI does not come up, or does not end; says which ranks of this host are late; ends the launcher.

It runs as a program of its own, on the standard library alone, since a process in which MPI starts or ends can do
nothing else meanwhile. It ends as soon as its standard input does: when all ranks are in, or its rank has gone.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

RANK_VARIABLES = (b"OMPI_COMM_WORLD_RANK=", b"PMIX_RANK=", b"PMI_RANK=", b"SLURM_PROCID=")
STATES = {"T": "is stopped by a signal", "t": "is stopped by a debugger", "D": "waits for a disk or a file server"}

SLICE = 2.0
"""Seconds for which it waits at once. In a slice that took far longer this process, and its job with it, was suspended.
"""

EXIT = 0.7
"""Seconds between what is said and the end of the rank, in which other hosts say what is seen there."""

LAST = 3.0
"""Seconds after which a rank that has not ended by itself is killed."""


def ranks_of(launcher: int) -> Iterator[tuple[int, int]]:
    """Yield the rank and the process of each rank that a launcher has started on this host."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError, StopIteration):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == launcher:
                variables = (folder / "environ").read_bytes().split(b"\0")
                words = (v.partition(b"=")[2] for name in RANK_VARIABLES for v in variables if v.startswith(name))
                yield int(next(words)), int(folder.name)


def late(launcher: int) -> list[str]:
    """Return what keeps each rank of this host that is seen not to start MPI, by rank."""
    found = []
    for rank, process in sorted(ranks_of(launcher)):
        with suppress(OSError, IndexError):
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
            if state in STATES:
                found.append(f"rank {rank} (process {process}) {STATES[state]}")
            elif "/libmpi" not in Path(f"/proc/{process}/maps").read_text():
                found.append(f"rank {rank} (process {process}) has not loaded MPI yet")
    return found


def seen_on(host: str, launcher: int) -> str:
    """Return a sentence on the ranks of this host."""
    found = late(launcher)
    if found:
        return f"On {host} {'; '.join(found[:4])}{f'; and {len(found) - 4} more' if len(found) > 4 else ''}"
    return f"No rank on {host} is seen to stand still: look at other hosts, and at the network between them"


def say(message: str) -> None:
    """Write a line to standard error, unless whoever read it has gone."""
    with suppress(OSError):
        os.write(2, f"resist_hvd: {message}\n".encode(errors="backslashreplace"))


def record(path: str, line: str) -> None:
    """Append a line to the record of how the run ended, as `outcome` does, if there is one."""
    with suppress(OSError):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        os.write(file, f"{line}\n".encode())
        os.close(file)


def over(seconds: float) -> bool:
    """Wait; return whether the standard input ended before. Time in which the job is suspended does not count."""
    while seconds > 0:
        began = time.monotonic()
        if select.select([0], [], [], min(seconds, SLICE))[0]:
            return True
        seconds -= min(time.monotonic() - began, 2 * SLICE)
    return False


def end_rank() -> None:
    """Have the rank end itself: whoever waits at the other end of the standard output does so with its own status."""
    with suppress(OSError):
        os.write(1, b"!")


def main() -> None:
    """Wait, as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--host")
    parser.add_argument("--process", type=int, help="the rank's")
    parser.add_argument("--launcher", type=int, help="its parent")
    parser.add_argument("--seconds", type=float, help="after which it is ended")
    parser.add_argument("--note", type=float, help="seconds after which it is told what is waited for")
    parser.add_argument("--speaks", type=float, help="seconds more that others are given to speak first")
    parser.add_argument("--ending", action="store_true", help="whether MPI ends; else it starts")
    parser.add_argument("--record", help="the file that tells how the run ended")
    parser.add_argument("--status", help="the rank's exit status then")
    parser.add_argument("--then", nargs="*", default=[], help="the program that ends the launcher")
    given = parser.parse_args()
    left = given.seconds + given.speaks
    if 0 < given.note < given.seconds:
        if over(given.note):
            return
        left -= given.note
        say(f"Not all ranks have started MPI after {given.note:.0f} s. {seen_on(given.host, given.launcher)}.")
    if over(left):
        return
    seen = f"{given.seconds:.0f} s [rank {given.rank} on {given.host}, {{}}]. {seen_on(given.host, given.launcher)}. "
    if given.ending:
        say(f"MPI did not end on all ranks within {seen.format('ending')}All that was to be written is written.")
    else:
        say(
            f"MPI did not come up on all ranks within {seen.format('starting MPI')}Start again once that is mended; "
            "--watchdog gives another limit."
        )
    line = f"{given.status} rank {given.rank} on {given.host}"
    recording = threading.Thread(target=record, args=(given.record, line), daemon=True)
    recording.start()
    recording.join(1.0)  # its file server may be what all wait for
    if not over(EXIT):
        end_rank()
        if not over(LAST):
            with suppress(OSError):
                os.kill(given.process, signal.SIGKILL)
    if given.then:
        os.execv(sys.executable, [sys.executable, "-I", "-S", *given.then])


if __name__ == "__main__":
    main()
