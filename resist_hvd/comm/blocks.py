"""An exchange of blocks under way: non-blocking messages, which fill slow links.

On one host all messages leave at once, whole. Between hosts each is cut into chunks that MPI sends without asking the
receiver first, and what becomes of a chunk does not wait for the next: as soon as all copies of it have come it is
averaged, and goes on to next holders. Chunks leave in the order of turns, in which no rank gets two messages at a time.
They are sent synchronously, so that their ends tell that they were received, and a rank has only so many under way:
enough that its link has something to send while neither rank has its core, and so few that turns hold. A rank that sent
to all others at once would share its link among all messages: what averages are waited for would come last with what
nobody waits for, and several would send to one rank, whose queue loses what is too much.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resist_hvd.protocol.exchange import Exchange, Fetch, Share
from resist_hvd.protocol.turns import turns

Message = Share | Fetch
Numbers = NDArray[Any]

CHUNKS = 8
"""Chunks that a long message is cut into."""

LEAST_BYTES, MOST_BYTES = 16 * 2**10, 2**20
"""Bytes of a chunk: the least is what every MPI sends without asking first, over TCP at any rate."""

WINDOW = 8
"""Chunks that a rank may have under way between hosts, to all others together: a long message's."""

NAP = 2e-4
"""Seconds between two looks at what has come from other hosts. The kernel goes on sending and receiving meanwhile; a
rank that looked all the time would take the core that it, or another rank, needs for that."""


class Mail(NamedTuple):
    """Carriers of an exchange.

    Attributes:
        everyone: communicator of all workers: fetches travel in it.
        groups: of each group of ranks that can share a block and that this rank is in: shares travel in them.
        progress: called whenever a chunk has come or gone, as a slow link shows no other.
    """

    everyone: Any
    groups: Mapping[tuple[int, ...], Any]
    progress: Callable[[], None]


class UnderWay(NamedTuple):
    """A chunk that is sent or received, by its number in its message."""

    message: Message
    number: int


class Departure:
    """A message of which chunks are still to leave."""

    def __init__(self, message: Message, chunks: Sequence[Numbers]) -> None:
        self.message, self.chunks = message, chunks
        self.next = 0


class Landing:
    """A part that comes to where this rank's copy of it is: a chunk may come once that of the copy has left."""

    def __init__(self, fetch: Fetch, chunks: Sequence[Numbers]) -> None:
        self._fetch, self._chunks = fetch, chunks
        self._left: set[int] = set()
        self._next = 0

    def has_left(self, number: int) -> Iterator[tuple[UnderWay, Numbers]]:
        """Take note that a chunk of the copy has left; yield those that may come now, in order."""
        self._left.add(number)
        while self._next in self._left:
            yield UnderWay(self._fetch, self._next), self._chunks[self._next]
            self._next += 1


class PendingExchange:
    """An exchange of blocks under way; it begins when this is made.

    `advance` and `finish` may be called by another thread than that which made it, but by one at a time. Averages are
    computed by NumPy, in that thread alone.

    Args:
        rank: of this worker.
        plan: the exchange, the same on every rank.
        buffers: by block number, in host memory, those that this rank holds or receives. Averages and what arrives are
            in them in the end.
        copies: by block and source, where the copies of parts go that this rank averages.
        mail: what carries it.
        window: how many chunks this rank may have under way, where messages travel between hosts; None where none does.

    Attributes:
        bytes_sent: payload in bytes that this rank sends.
        by_chunks: whether a chunk is averaged as soon as all copies of it have come, not their whole part.
    """

    by_chunks = True

    def __init__(
        self,
        rank: int,
        plan: Exchange,
        buffers: Mapping[int, Tensor],
        copies: Mapping[tuple[int, int], Tensor],
        mail: Mail,
        window: int | None,
    ) -> None:
        self._rank, self._plan, self._mail, self._window = rank, plan, mail, window
        self._buffers = {block: buffer.numpy() for block, buffer in buffers.items()}
        self._copies = {key: copy.numpy() for key, copy in copies.items()}
        self._requests: list[Any] = []
        self._under_way: list[UnderWay] = []
        self._sending = 0  # chunks under way from this rank
        # Chunks that have not come: of copies by block and piece, of which this rank averages its part; of fetches.
        self._copies_awaited: Counter[tuple[int, int]] = Counter()
        self._chunks_awaited: Counter[Fetch] = Counter()
        self._landing: dict[tuple[int, int], Landing] = {}
        own = [message for message in self._in_order() if rank in (message.source, message.destination)]
        departing = [message for message in own if message.source == rank]
        self.bytes_sent = sum(self._part(message).nbytes for message in departing)
        for message in own:
            if message.destination == rank:
                self._expect(message)
        self._departures = [Departure(message, self._chunks(self._part(message))) for message in departing]
        self._send_what_may_leave()

    def _in_order(self) -> list[Message]:
        """Return all messages, shares first; where chunks travel in the order of turns."""
        shares, fetches = self._plan.shares, self._plan.fetches
        if self._window is None:
            return [*shares, *fetches]
        return [*in_turns(shares), *in_turns(fetches)]

    def _part(self, message: Message) -> Numbers:
        buffer = self._buffers[message.block]
        part: Numbers = buffer[self._plan.part(message.block, message.part, buffer.size)]
        return part

    def _chunks(self, numbers: Numbers) -> list[Numbers]:
        if self._window is None or numbers.size == 0:
            return [numbers]
        size = min(MOST_BYTES, max(LEAST_BYTES, numbers.nbytes // CHUNKS)) // numbers.itemsize
        return [numbers[begin : begin + size] for begin in range(0, numbers.size, size)]

    def _piece(self, chunk: int) -> int:
        """Return the number of the piece, averaged at once, that a chunk is in."""
        return chunk if self.by_chunks else 0

    def _way(self, message: Message, other: int) -> tuple[Any, int]:
        """Return the communicator that a message travels in, and there the rank of the worker at its other end."""
        if isinstance(message, Fetch):
            return self._mail.everyone, other
        holders = self._plan.holders[message.block]
        return self._mail.groups[holders], holders.index(other)

    # -- what comes ----------------------------------------------------------------------------------------------

    def _expect(self, message: Message) -> None:
        """Count what comes, and ask for it at once, unless it lands where a copy is that must have left first."""
        share = isinstance(message, Share)
        chunks = self._chunks(self._copies[message.block, message.source] if share else self._part(message))
        if isinstance(message, Share):
            self._copies_awaited.update((message.block, self._piece(number)) for number in range(len(chunks)))
        else:
            self._chunks_awaited[message] = len(chunks)
            if self._lands_on_copy(message):
                self._landing[message.block, message.part] = Landing(message, chunks)
                return
        for number, chunk in enumerate(chunks):
            self._receive(UnderWay(message, number), chunk)

    def _lands_on_copy(self, fetch: Fetch) -> bool:
        """Return whether a part comes to where this rank's copy of it is, which must have left first."""
        return self._rank in self._plan.holders[fetch.block]

    def _receive(self, chunk: UnderWay, into: Numbers) -> None:
        comm, source = self._way(chunk.message, chunk.message.source)
        self._requests.append(comm.Irecv(into, source=source, tag=chunk.message.block))
        self._under_way.append(chunk)

    def _take_in(self, chunk: UnderWay) -> None:
        message = chunk.message
        if isinstance(message, Fetch):
            self._chunks_awaited[message] -= 1
            if not self._chunks_awaited[message]:
                self._has_come(message)
            return
        piece = message.block, self._piece(chunk.number)
        self._copies_awaited[piece] -= 1
        if not self._copies_awaited[piece]:
            del self._copies_awaited[piece]
            self._average(message, chunk.number)

    def _has_come(self, fetch: Fetch) -> None:
        """Act on a part in its final state, all of which has come."""

    def _average(self, share: Share, chunk: int) -> None:
        """Replace a chunk of a part by the average of all holders' copies, summed in ascending order of ranks."""
        own, holders = self._chunks(self._part(share))[chunk], self._plan.holders[share.block]
        copies = [
            own if rank == self._rank else self._chunks(self._copies[share.block, rank])[chunk] for rank in holders
        ]
        with np.errstate(all="ignore"):  # numbers that are not finite are found where a run looks for them
            for copy in copies[1:]:
                np.add(copies[0], copy, out=copies[0])
            np.multiply(copies[0], own.dtype.type(1.0 / len(holders)), out=own)

    # -- what leaves ---------------------------------------------------------------------------------------------

    def _send_what_may_leave(self) -> None:
        for departure in self._departures:
            while departure.next < len(departure.chunks) and self._may_leave(departure.message, departure.next):
                if not departure.next:
                    self._prepare(departure.message)
                self._send(UnderWay(departure.message, departure.next), departure.chunks[departure.next])
                departure.next += 1
        self._departures = [each for each in self._departures if each.next < len(each.chunks)]

    def _may_leave(self, message: Message, chunk: int) -> bool:
        """Return whether a chunk is in its final state, if it is to be, and the window has room for it."""
        if isinstance(message, Fetch) and (message.block, self._piece(chunk)) in self._copies_awaited:
            return False
        return self._window is None or self._sending < self._window

    def _prepare(self, message: Message) -> None:
        """Make what a message takes with it, right before it leaves."""

    def _send(self, chunk: UnderWay, numbers: Numbers) -> None:
        comm, destination = self._way(chunk.message, chunk.message.destination)
        send = comm.Isend if self._window is None else comm.Issend
        self._requests.append(send(numbers, dest=destination, tag=chunk.message.block))
        self._under_way.append(chunk)
        self._sending += 1

    def _has_left(self, chunk: UnderWay) -> None:
        message = chunk.message
        self._sending -= 1
        landing = self._landing.get((message.block, message.part))
        if isinstance(message, Share) and landing is not None:
            for following, into in landing.has_left(chunk.number):
                self._receive(following, into)

    # -- both ----------------------------------------------------------------------------------------------------

    @property
    def _done(self) -> bool:
        return not (self._requests or self._departures)

    def advance(self) -> bool:
        """Take in what has come, and send what may leave by now, without waiting; return whether all is done."""
        from mpi4py import MPI

        while self._requests and self._go_on(MPI.Request.Testsome(self._requests)):
            pass
        return self._done

    def finish(self) -> None:
        """Wait until all is done."""
        from mpi4py import MPI

        while not self._done:
            if self._window is None:
                self._go_on(MPI.Request.Waitsome(self._requests))
            elif not self.advance():
                time.sleep(NAP)

    def _go_on(self, ended: list[int] | None) -> bool:
        """Act on chunks that have ended, by their places in the list of requests; return whether there are any."""
        if not ended:
            return False
        over = set(ended)
        chunks = [self._under_way[place] for place in ended]
        self._requests = [request for place, request in enumerate(self._requests) if place not in over]
        self._under_way = [chunk for place, chunk in enumerate(self._under_way) if place not in over]
        for chunk in chunks:
            if chunk.message.source == self._rank:
                self._has_left(chunk)
            else:
                self._take_in(chunk)
        self._send_what_may_leave()
        self._mail.progress()
        return True


def in_turns(messages: Sequence[Message]) -> list[Message]:
    """Return messages in the order of their turns."""
    found = turns([(message.source, message.destination) for message in messages])
    return [message for _, message in sorted(zip(found, messages, strict=True), key=lambda pair: pair[0])]
