"""The processes of a host, told by the process namespace they are in, seen from outside of it."""

import os
import re
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")


@dataclass(frozen=True)
class Process:
    """A living process.

    Attributes:
        pid: its number on this machine.
        state: the kernel's letter, such as R, S, T (stopped) or Z.
        command: what it was started by.
        rank: the MPI rank that it is, or belongs to.
    """

    pid: int
    state: str
    command: list[str]
    rank: int | None


def started(pid: int) -> int | None:
    """Return when a process was started, in the kernel's ticks since this machine was; None where there is none."""
    try:
        fields = _statistics(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _statistics(pid: int) -> list[str]:
    """Return what the kernel tells of a process after its name: its state first."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def within(namespaces: Iterable[int]) -> dict[int, list[Process]]:
    """Return the processes in each of some process namespaces, zombies aside."""
    found: dict[int, list[Process]] = {inode: [] for inode in namespaces}
    for entry in os.listdir(PROC):
        if not entry.isdecimal():
            continue
        with suppress(OSError):
            inode = namespace(int(entry))
            if inode in found and (process := _read(int(entry))).state != "Z":
                found[inode].append(process)
    return found


def namespace(pid: int) -> int:
    """Return the inode of a process's process namespace; 0 where it has ended."""
    try:
        return (PROC / str(pid) / "ns/pid").stat().st_ino
    except OSError:
        return 0


def is_first(pid: int) -> bool:
    """Return whether a process is the one that its process namespace hangs on."""
    return re.search(r"^NSpid:.*\t1$", (PROC / str(pid) / "status").read_text(), re.MULTILINE) is not None


def _read(pid: int) -> Process:
    folder = PROC / str(pid)
    command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    variables = dict(
        entry.partition("=")[::2] for entry in (folder / "environ").read_bytes().decode(errors="replace").split("\0")
    )
    ranks = (int(variables[name]) for name in RANK_VARIABLES if variables.get(name, "").isdecimal())
    return Process(pid, _statistics(pid)[0], command, next(ranks, None))


def send(pids: Iterable[int], number: signal.Signals) -> int:
    """Send a signal to processes, and return how many got it."""
    count = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            count += 1
    return count
