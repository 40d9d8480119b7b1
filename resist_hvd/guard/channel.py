"""Connection between two ranks that does not depend on MPI: messages of JSON, a line each, over TCP.

It works while the main thread waits in a collective for a rank that will never come, and the kernel closes it in the
moment in which a process dies.
"""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from typing import Any

LONGEST_LINE = 4096
MOST_UNSENT = 2**16


class Channel:
    """One end of the connection; it never blocks.

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
        """Send bytes that are no message, as `send` does."""
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
            with suppress(ValueError, RecursionError):
                message = json.loads(line)
                if isinstance(message, dict):
                    messages.append(message)
        return messages

    def close(self) -> None:
        """Close the connection."""
        self.closed = True
        self.connection.close()
