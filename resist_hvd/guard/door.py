"""The port where ranks find rank 0: open until all of them are in, then closed for good.

Anyone who reaches this host may knock. Until a caller has shown the right words it is a stranger: it may send one short
line, within some seconds; strangers are few at once; nothing that they send is parsed; and an error of one closes that
one.
"""

from __future__ import annotations

import selectors
import socket
import time
from dataclasses import dataclass

from resist_hvd.guard.lifeline import Line, Meeting, own_addresses

LONGEST_HELLO = 4096
"""Bytes that a stranger may send without a line's end."""

PATIENCE = 5.0
"""Seconds in which a stranger must have said who it is."""

MOST_STRANGERS = 64
"""Strangers that are heard at once: when more come, the oldest must go. A rank speaks as soon as it is connected, and
comes again where it was not heard."""

A_TURN = 8
"""Callers that are let in at once, before those who are in are heard: far fewer than are kept, so that each of them is
heard before a flood of others has it go."""


@dataclass(eq=False)
class Stranger:
    """A connection that has not yet said whose it is."""

    connection: socket.socket
    since: float
    received: bytes = b""


class Door:
    """Rank 0's listener, and who stands there.

    Args:
        host: this host's name.
        size: how many ranks there are.
        one_host: whether all of them are on this host; then no other host can reach the port.
        selector: what tells when a caller has come or has spoken. Its data is this door, or a `Stranger`.
    """

    def __init__(self, host: str, size: int, *, one_host: bool, selector: selectors.BaseSelector) -> None:
        self._server = socket.create_server(("127.0.0.1" if one_host else "", 0), backlog=1024)
        self._server.setblocking(False)
        self._size = size
        self._selector = selector
        self._strangers: list[Stranger] = []  # the oldest first
        self.meeting = Meeting(host, [] if one_host else own_addresses(), self._server.getsockname()[1])
        selector.register(self._server, selectors.EVENT_READ, self)

    @property
    def strangers(self) -> int:
        """The number of callers that have not said who they are."""
        return len(self._strangers)

    def let_in(self) -> None:
        """Take those who have come, as strangers."""
        for _ in range(A_TURN):
            try:
                connection, _ = self._server.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptors are left, or the caller has gone
                if self._strangers:
                    self._turn_away(self._strangers[0])
                else:
                    time.sleep(0.01)  # it would be told of the same caller again at once
                return
            try:
                connection.setblocking(False)
                stranger = Stranger(connection, time.monotonic())
                self._selector.register(connection, selectors.EVENT_READ, stranger)
            except (OSError, ValueError, KeyError):
                connection.close()
                continue
            self._strangers.append(stranger)
            if len(self._strangers) > MOST_STRANGERS:
                self._turn_away(self._strangers[0])

    def hear(self, stranger: Stranger) -> tuple[int, Line] | None:
        """Read once what a stranger says; return its rank and its line once it has said that, else None.

        Whoever takes it for that rank is to welcome it.
        """
        try:
            part = stranger.connection.recv(LONGEST_HELLO - len(stranger.received))
            stranger.received += part
            hello, end, _ = stranger.received.partition(b"\n")
            if not end and part and len(stranger.received) < LONGEST_HELLO:
                return None
            rank = self.meeting.rank_of(hello, self._size) if end else None
            if rank is not None:
                self._forget(stranger)
                return rank, Line(stranger.connection)
        except BlockingIOError:
            return None
        except (OSError, ValueError):
            pass
        self._turn_away(stranger)
        return None

    def turn_away_idle(self, now: float) -> None:
        """Let go of strangers that have taken too long, at a time of the monotonic clock."""
        for stranger in [one for one in self._strangers if now - one.since > PATIENCE]:
            self._turn_away(stranger)

    def close(self) -> None:
        """Listen no more, and let go of all strangers."""
        for stranger in list(self._strangers):
            self._turn_away(stranger)
        self._selector.unregister(self._server)
        self._server.close()

    def _turn_away(self, stranger: Stranger) -> None:
        self._forget(stranger)
        stranger.connection.close()

    def _forget(self, stranger: Stranger) -> None:
        self._strangers.remove(stranger)
        self._selector.unregister(stranger.connection)
