"""The processes of a host, told by the process namespace they are in, seen from outside of it."""

import os
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
        number: its number on its host, where 1 is the process that the host hangs on.
        state: the kernel's letter, such as R, S, T (stopped) or Z.
        command: what it was started by.
        rank: the MPI rank that it is, or belongs to.
    """

    pid: int
    number: int
    state: str
    command: list[str]
    rank: int | None


def started(pid: int) -> int | None:
    """Return when a process was started, in the kernel's ticks since this machine was; None where there is none."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def within(namespaces: Iterable[int]) -> dict[int, list[Process]]:
    """Return the processes in each of some process namespaces, zombies aside."""
    found: dict[int, list[Process]] = {namespace: [] for namespace in namespaces}
    for entry in os.listdir(PROC):
        if not entry.isdecimal():
            continue
        with suppress(OSError):
            namespace = (PROC / entry / "ns/pid").stat().st_ino
            if namespace in found and (process := _read(int(entry))).state != "Z":
                found[namespace].append(process)
    return found


def _read(pid: int) -> Process:
    folder = PROC / str(pid)
    status = dict(line.partition(":\t")[::2] for line in (folder / "status").read_text().splitlines())
    command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    variables = dict(
        entry.partition("=")[::2] for entry in (folder / "environ").read_bytes().decode(errors="replace").split("\0")
    )
    ranks = (variables[name] for name in RANK_VARIABLES if variables.get(name, "").isdecimal())
    rank = next(ranks, None)
    return Process(
        pid, int(status["NSpid"].split()[-1]), status["State"][0], command, None if rank is None else int(rank)
    )


def send(processes: Iterable[Process], number: signal.Signals) -> int:
    """Send a signal to processes, and return how many got it."""
    count = 0
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
            count += 1
    return count
