"""Evidence that a rank which does not get on is not stuck: bytes that its connections carry, a processor it waits for.

All of it comes from the kernel, of this process alone: other traffic of the host, such as a file server's or ssh's,
proves nothing.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
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

_TCP_INFO = struct.Struct("=120xQQ16xII")
"""Of Linux's `struct tcp_info`: bytes acknowledged, bytes received, segments with data received and sent."""

_FABRICS = Path("/sys/class/infiniband")


class Carried(NamedTuple):
    """What a connection has carried in both directions, since it was made."""

    bytes: int
    packets: int


@dataclass(frozen=True)
class Look:
    """What the kernel says at one moment.

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
    def take(cls) -> Look:
        """Look now."""
        delays: dict[str, float] = {}
        carried: dict[str, Carried] = {}
        with suppress(OSError):  # this process has no descriptors left
            delays.update(run_delays())
            carried.update(tcp_connections())
            carried.update(fabric_ports())
        return cls(time.monotonic(), time.process_time(), delays, carried)

    def starved_since(self, before: Look) -> float:
        """Return the seconds since then in which the unluckiest thread was ready to run and had no processor."""
        waited = (delay - before.delays.get(thread, delay) for thread, delay in self.delays.items())
        return min(max(waited, default=0.0), self.at - before.at)

    def moved_since(self, before: Look) -> bool:
        """Return whether any connection has carried more than chatter since then."""
        return any(
            now.bytes - then.bytes - CHATTER * (now.packets - then.packets) > ENOUGH
            for name, now in self.carried.items()
            if (then := before.carried.get(name)) is not None
        )


@dataclass(frozen=True)
class Vitals:
    """What a rank knows of itself; the attributes of `judging.Sight` of the same names tell what they are."""

    idle: float
    still: float
    processors: float = 0.0
    starved: float = 0.0


class Pulse:
    """Looks at this process again and again for as long as it does not get on.

    Args:
        activity: what this rank does.
    """

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._progressed = activity.progressed
        self._first: Look | None = None
        self._last: Look | None = None
        self._moved: Look | None = None

    def feel(self, now: float) -> Vitals:
        """Return how this rank fares at a time of the monotonic clock; called about once a second."""
        progressed = self._activity.progressed
        idle = now - progressed
        if progressed != self._progressed or idle < SETTLING:
            self._progressed, self._first = progressed, None
            return Vitals(idle, idle)
        look = self._look()
        if self._first is None or self._last is None or self._moved is None:
            self._first = self._last = self._moved = look
            return Vitals(idle, idle)
        if self._activity.waits and look.moved_since(self._last):
            self._moved = look
        self._last = look
        since = progressed if self._moved is self._first else self._moved.at
        return Vitals(
            idle=idle,
            still=max(0.0, now - since - look.starved_since(self._moved)),
            processors=(look.processor_seconds - self._first.processor_seconds) / max(look.at - self._first.at, 1e-9),
            starved=look.starved_since(self._first),
        )

    def _look(self) -> Look:
        return Look.take()


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
    """Yield each port of an InfiniBand or RoCE adapter, which needs no sockets, and what it has carried."""
    for port in _FABRICS.glob("*/ports/*/counters"):
        with suppress(OSError, ValueError):

            def both(what: str, port: Path = port) -> int:
                return sum(int((port / f"port_{way}_{what}").read_text()) for way in ("xmit", "rcv"))

            yield f"port {port}", Carried(4 * both("data"), both("packets"))  # the counters' unit is four bytes
