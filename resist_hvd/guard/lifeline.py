"""Connections between the ranks that do not depend on MPI: a few words a second, over TCP, each rank with rank 0.

They work while the main thread waits in a collective for a rank that will never come, and the kernel closes them in the
moment in which a process dies. What travels is lines of JSON. A connection counts only after both ends have shown
the words that rank 0 drew and MPI broadcast: until then nothing that comes by it is parsed.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
import threading
import time
from typing import Any

import psutil

from resist_hvd.comm.world import World

LONGEST_LINE = 4096
MOST_UNSENT = 2**16
CONNECTING = 3.0
"""Seconds in which an address of rank 0 must answer."""

CONNECTING_AT_ALL = 20.0
"""Seconds for which a rank tries all addresses again and again: rank 0 may have little time, or many callers."""


class Line:
    """One end of a connection, which never blocks.

    Args:
        connection: a connected socket.

    Attributes:
        closed: whether the other end is gone.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self.closed = False
        self._received = b""
        self._unsent = b""
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, now or with later ones; while the other end reads nothing, only so much is kept."""
        self.send_bytes(json.dumps(message).encode() + b"\n")

    def send_bytes(self, message: bytes) -> None:
        """Send what is no message yet, as `send` does."""
        with self._lock:
            if len(self._unsent) < MOST_UNSENT:
                self._unsent += message
            try:
                self._unsent = self._unsent[self.connection.send(self._unsent) :]
            except BlockingIOError:
                return
            except OSError:
                self.closed = True

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have come."""
        try:
            part = self.connection.recv(2**16)
            self._received += part
            self.closed |= not part
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        *lines, self._received = self._received.split(b"\n")
        if len(self._received) > LONGEST_LINE:
            self.closed = True
        messages = []
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                message = json.loads(line)
                if isinstance(message, dict):
                    messages.append(message)
        return messages

    def close(self) -> None:
        """Let go of the connection."""
        self.closed = True
        self.connection.close()


class Meeting:
    """Way to meet rank 0: the addresses of its host, a port, and the words by which both ends know each other."""

    def __init__(self, host: str, addresses: list[str], port: int) -> None:
        self.host = host
        self.addresses = addresses
        self.port = port
        self.question = secrets.token_hex(16)
        self.answer = secrets.token_hex(16)

    def hello(self, rank: int) -> bytes:
        """Return what a rank says first: all of it that rank 0 reads before it trusts the connection."""
        return f"{self.question} {rank}\n".encode()

    def rank_of(self, hello: bytes, size: int) -> int | None:
        """Return whose first line this is, without its end; None if it is no rank's of a world of this size."""
        question, _, rank = hello.partition(b" ")
        known = hmac.compare_digest(question, self.question.encode())
        return int(rank) if known and rank.isdigit() and len(rank) < 9 and 0 < int(rank) < size else None

    def welcome(self, line: Line) -> None:
        """Have a rank know that it has found rank 0."""
        line.send_bytes(self.answer.encode())

    def connect(self, world: World) -> Line | None:
        """Return this rank's connection to rank 0, None where none of its addresses answers."""
        addresses = ["127.0.0.1", *self.addresses] if world.host == self.host else self.addresses
        end = time.monotonic() + CONNECTING_AT_ALL
        while True:
            for address in addresses:
                with contextlib.suppress(OSError):
                    if (line := self._connect_to(address, world.rank)) is not None:
                        return line
            if time.monotonic() > end:
                return None
            time.sleep(0.1)

    def _connect_to(self, address: str, rank: int) -> Line | None:
        connection = socket.create_connection((address, self.port), timeout=CONNECTING)
        try:
            connection.sendall(self.hello(rank))
            # Another program may listen at this address of another network: take no answer but the right one.
            if hmac.compare_digest(receive_exactly(connection, len(self.answer)), self.answer.encode()):
                return Line(connection)
        except OSError:
            pass
        connection.close()
        return None


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """Return so many bytes, fewer where the other end has no more."""
    received = b""
    while len(received) < size and (part := connection.recv(size - len(received))):
        received += part
    return received


def own_addresses() -> list[str]:
    """Return this host's IPv4 addresses that others might reach."""
    entries = [entry for several in psutil.net_if_addrs().values() for entry in several]
    found = [str(entry.address) for entry in entries if entry.family == socket.AF_INET]
    return [address for address in found if not address.startswith("127.")]
