"""Rendezvous of the ranks with rank 0, by TCP: how each finds it, and how both ends know that they are of one world.

A connection counts only after both ends have shown the secrets that rank 0 drew and MPI broadcast: until then nothing
that comes by it is parsed.
"""

from __future__ import annotations

import hmac
import secrets
import selectors
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from resist_hvd.guard.channel import Channel

if TYPE_CHECKING:
    from resist_hvd.comm.world import World

CONNECTING = 3.0
"""Seconds in which an address of rank 0 must answer."""

CONNECTING_AT_ALL = 20.0
"""Seconds for which a rank tries all addresses again and again: rank 0 may have little time, or many callers."""

LONGEST_HELLO = 4096
"""Bytes that a caller may send without a line's end."""

PATIENCE = 5.0
"""Seconds in which a caller must have said which rank it is."""

MOST_CALLERS = 64
"""Callers that are kept at once: when more come, the oldest is rejected. A rank speaks as soon as it is connected, and
comes again where it was not heard."""

A_TURN = 8
"""Callers that are accepted at once, before those who are kept are read: far fewer than are kept, so that each of them
is read before a flood of others has it rejected."""


class Rendezvous:
    """Way to rank 0: the addresses of its host, a port, and the secrets by which both ends know each other.

    Rank 0 makes it, and MPI broadcasts it.
    """

    def __init__(self, host: str, addresses: list[str], port: int) -> None:
        self.host = host
        self.addresses = addresses
        self.port = port
        self.question = secrets.token_hex(16)
        self.answer = secrets.token_hex(16)

    def hello(self, rank: int) -> bytes:
        """Return the first line of a rank: all that rank 0 reads before it trusts the connection."""
        return f"{self.question} {rank}\n".encode()

    def rank_of(self, hello: bytes, size: int) -> int | None:
        """Return the rank of a first line, without its end; None if it is no rank's of a world of this size."""
        question, _, rank = hello.partition(b" ")
        known = hmac.compare_digest(question, self.question.encode())
        return int(rank) if known and rank.isdigit() and len(rank) < 9 and 0 < int(rank) < size else None

    def welcome(self, channel: Channel) -> None:
        """Tell a rank that it has found rank 0."""
        channel.send_bytes(self.answer.encode())

    def connect(self, world: World) -> Channel | None:
        """Return this rank's connection to rank 0, None where none of its addresses answers."""
        addresses = ["127.0.0.1", *self.addresses] if world.host == self.host else self.addresses
        end = time.monotonic() + CONNECTING_AT_ALL
        while True:
            for address in addresses:
                with suppress(OSError):
                    if (channel := self._connect_to(address, world.rank)) is not None:
                        return channel
            if time.monotonic() > end:
                return None
            time.sleep(0.1)

    def _connect_to(self, address: str, rank: int) -> Channel | None:
        connection = socket.create_connection((address, self.port), timeout=CONNECTING)
        try:
            connection.sendall(self.hello(rank))
            # Another program may listen at this address of another network: take no answer but the right one.
            if hmac.compare_digest(receive_exactly(connection, len(self.answer)), self.answer.encode()):
                return Channel(connection)
        except OSError:
            pass
        connection.close()
        return None


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """Return `size` bytes, fewer where the other end has no more."""
    received = b""
    while len(received) < size and (part := connection.recv(size - len(received))):
        received += part
    return received


def own_addresses() -> list[str]:
    """Return this host's IPv4 addresses that others might reach."""
    entries = [entry for several in psutil.net_if_addrs().values() for entry in several]
    found = [str(entry.address) for entry in entries if entry.family == socket.AF_INET]
    return [address for address in found if not address.startswith("127.")]


@dataclass(eq=False)
class Caller:
    """Connection that has not yet shown which rank it is of."""

    connection: socket.socket
    since: float
    received: bytes = b""


class Listener:
    """Rank 0's port: open until all ranks are in, then closed for good.

    Anyone who reaches this host may call. A caller may send one short line, within some seconds; few are kept at once;
    nothing that they send is parsed; and an error of one closes that one.

    Args:
        host: this host's name.
        size: how many ranks there are.
        one_host: whether all of them are on this host; then no other host can reach the port.
        selector: tells when a caller has come or has sent something. Its data is this listener, or a `Caller`.

    Attributes:
        rendezvous: the way to this port.
    """

    def __init__(self, host: str, size: int, *, one_host: bool, selector: selectors.BaseSelector) -> None:
        self._server = socket.create_server(("127.0.0.1" if one_host else "", 0), backlog=1024)
        self._server.setblocking(False)
        self._size = size
        self._selector = selector
        self.callers: list[Caller] = []  # the oldest first
        self.rendezvous = Rendezvous(host, [] if one_host else own_addresses(), self._server.getsockname()[1])
        selector.register(self._server, selectors.EVENT_READ, self)

    def accept(self) -> None:
        """Accept those who have come, as callers."""
        for _ in range(A_TURN):
            try:
                connection, _ = self._server.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptors are left, or the caller has gone
                if self.callers:
                    self._reject(self.callers[0])
                else:
                    time.sleep(0.01)  # it would be told of the same caller again at once
                return
            try:
                connection.setblocking(False)
                caller = Caller(connection, time.monotonic())
                self._selector.register(connection, selectors.EVENT_READ, caller)
            except (OSError, ValueError, KeyError):
                connection.close()
                continue
            self.callers.append(caller)
            if len(self.callers) > MOST_CALLERS:
                self._reject(self.callers[0])

    def read(self, caller: Caller) -> tuple[int, Channel] | None:
        """Read once from a caller; return its rank and its channel once it has shown them, else None.

        Whoever takes it for that rank is to welcome it.
        """
        try:
            part = caller.connection.recv(LONGEST_HELLO - len(caller.received))
            caller.received += part
            hello, end, _ = caller.received.partition(b"\n")
            if not end and part and len(caller.received) < LONGEST_HELLO:
                return None
            rank = self.rendezvous.rank_of(hello, self._size) if end else None
            if rank is not None:
                self._forget(caller)
                return rank, Channel(caller.connection)
        except BlockingIOError:
            return None
        except (OSError, ValueError):
            pass
        self._reject(caller)
        return None

    def reject_idle(self, now: float) -> None:
        """Reject callers that have taken too long, at a time of the monotonic clock."""
        for caller in [one for one in self.callers if now - one.since > PATIENCE]:
            self._reject(caller)

    def close(self) -> None:
        """Listen no more, and reject all callers."""
        for caller in list(self.callers):
            self._reject(caller)
        self._selector.unregister(self._server)
        self._server.close()

    def _reject(self, caller: Caller) -> None:
        self._forget(caller)
        caller.connection.close()

    def _forget(self, caller: Caller) -> None:
        self.callers.remove(caller)
        self._selector.unregister(caller.connection)
