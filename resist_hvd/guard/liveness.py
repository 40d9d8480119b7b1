"""Liveness of a rank that does not get on: bytes that its connections carry, processors that it waits for.

All of it comes from the kernel. Sockets and processors are this process's alone: other traffic of the host, such as a
file server's or ssh's, proves nothing. An InfiniBand adapter counts for all who use it, so only those that this process
has open are asked, and it takes far more to count as movement there: other jobs, and a file system on the same
adapter, can still pass for this run, until the limit that holds even where bytes move.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from resist_hvd.comm.activity import Activity

SETTLING = 2.0
"""Seconds without progress before the kernel is asked: in ordinary rounds this costs nothing."""

CHATTER = 512
"""Bytes of a packet that do not count. Horovod's ranks ask one another every cycle what is ready, in packets of some
hundred bytes, in a world that stands still, too; parameters fill their packets."""

ENOUGH = 4096
"""Bytes beyond chatter, on one connection between two looks, that count as movement."""

ENOUGH_ON_PORT = 2**26
"""As `ENOUGH`, on an adapter's port, which others use, too: a twentieth of what a slow one (10 Gb/s) carries in a
second. A message that takes longer than a limit of many seconds fills far more of it."""

_TCP_INFO = struct.Struct("=120xQQ16xII")
"""Of Linux's `struct tcp_info`: bytes acknowledged, bytes received, segments with data received and sent."""

_FABRICS = Path("/sys/class/infiniband")
_VERBS = Path("/sys/class/infiniband_verbs")


class Carried(NamedTuple):
    """Traffic of a connection in both directions, since it was made.

    Attributes:
        enough: bytes beyond chatter that count as movement.
    """

    bytes: int
    packets: int
    enough: int = ENOUGH


@dataclass(frozen=True)
class Sample:
    """Sample of the kernel's counts.

    Attributes:
        at: on the monotonic clock.
        processor_seconds: of all threads.
        delays: by thread, the seconds in which it was ready to run and had no processor.
        carried: by connection.
    """

    at: float
    processor_seconds: float
    delays: dict[str, float]
    carried: dict[str, Carried]

    @classmethod
    def take(cls) -> Sample:
        """Take a sample now."""
        delays: dict[str, float] = {}
        carried: dict[str, Carried] = {}
        with suppress(OSError):  # this process has no descriptors left
            delays.update(run_delays())
            carried.update(tcp_connections())
            carried.update(fabric_ports())
        return cls(time.monotonic(), time.process_time(), delays, carried)

    def starved_since(self, before: Sample) -> float:
        """Return the seconds since then in which the unluckiest thread was ready to run and had no processor."""
        waited = (delay - before.delays.get(thread, delay) for thread, delay in self.delays.items())
        return min(max(waited, default=0.0), self.at - before.at)

    def moved_since(self, before: Sample) -> bool:
        """Return whether any connection has carried more than chatter since then."""
        return any(
            now.bytes - then.bytes - CHATTER * (now.packets - then.packets) > now.enough
            for name, now in self.carried.items()
            if (then := before.carried.get(name)) is not None
        )


class Vitals(NamedTuple):
    """Measurements of this process: the fields of `judging.RankState` of the same names."""

    idle: float
    still: float
    processors: float = 0.0
    starved: float = 0.0


class Liveness:
    """Takes samples of this process for as long as it does not get on.

    Args:
        activity: this rank's.
        take: takes a sample.
    """

    def __init__(self, activity: Activity, take: Callable[[], Sample] = Sample.take) -> None:
        self._activity, self._take = activity, take
        self._progressed = activity.progressed
        self._first: Sample | None = None
        self._last: Sample | None = None
        self._moved: Sample | None = None

    def measure(self, now: float) -> Vitals:
        """Measure at a time of the monotonic clock; called about once a second."""
        progressed = self._activity.progressed
        idle = now - progressed
        if progressed != self._progressed or idle < SETTLING:
            self._progressed, self._first = progressed, None
            return Vitals(idle, idle)
        sample = self._take()
        if self._first is None or self._last is None or self._moved is None:
            self._first = self._last = self._moved = sample
            return Vitals(idle, idle)
        if self._activity.waits and sample.moved_since(self._last):
            self._moved = sample
        self._last = sample
        since = progressed if self._moved is self._first else self._moved.at
        used, elapsed = sample.processor_seconds - self._first.processor_seconds, sample.at - self._first.at
        return Vitals(
            idle=idle,
            still=max(0.0, now - since - sample.starved_since(self._moved)),
            processors=used / max(elapsed, 1e-9),
            starved=sample.starved_since(self._first),
        )


def run_delays() -> Iterator[tuple[str, float]]:
    """Yield each thread of this process, and the seconds in which it was ready to run and had no processor."""
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError, IndexError, ValueError):  # it has ended, or this kernel does not count
            yield thread, int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1]) / 1e9


def tcp_connections() -> Iterator[tuple[str, Carried]]:
    """Yield each TCP connection of this process, and what it has carried: MPI's, Horovod's, NCCL's."""
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError, struct.error):  # it was closed meanwhile, or is no such connection
            status = os.fstat(int(number))
            if stat.S_ISSOCK(status.st_mode):
                with socket.socket(fileno=os.dup(int(number))) as connection:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                sent, received, *segments = _TCP_INFO.unpack_from(info)
                yield f"socket {status.st_ino}", Carried(sent + received, sum(segments))


def fabric_ports() -> Iterator[tuple[str, Carried]]:
    """Yield each port of the InfiniBand and RoCE adapters that this process has open, and what it has carried.

    Such an adapter needs no sockets. Its ports carry all of the host's traffic by it, not this process's alone.
    """
    for adapter in open_adapters():
        yield from _ports_of(_FABRICS / adapter)


def open_adapters() -> set[str]:
    """Return the InfiniBand and RoCE adapters of which this process has a descriptor."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it was closed meanwhile
            device = Path(os.readlink(f"/proc/self/fd/{number}"))
            if device.name.startswith("uverbs"):
                found.add((_VERBS / device.name / "ibdev").read_text().strip())
    return found


def _ports_of(adapter: Path) -> Iterator[tuple[str, Carried]]:
    for port in adapter.glob("ports/*/counters"):
        with suppress(OSError, ValueError):

            def both(what: str, port: Path = port) -> int:
                return sum(int((port / f"port_{way}_{what}").read_text()) for way in ("xmit", "rcv"))

            # The unit of the counters of data is four bytes.
            yield f"port {port}", Carried(4 * both("data"), both("packets"), ENOUGH_ON_PORT)
