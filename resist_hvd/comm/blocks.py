"""An exchange of blocks under way: non-blocking messages, which fill slow links without queues that hold up answers.

On one host all messages leave at once, whole. Between hosts each is cut into chunks that MPI sends without asking the
receiver first. Chunks are sent synchronously, so that their ends tell how long they took to be received, and no more
are under way than a link carries in some milliseconds (as TCP Vegas does it, Brakmo and Peterson 1995): what waits in
a long queue holds up all that comes after it. Messages leave in turns in which no rank gets two at a time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
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

LEAST_BYTES, MOST_BYTES = 32 * 2**10, 2**20
"""Bytes of a chunk: the least is what every MPI sends without asking first, over TCP at any rate."""

AHEAD = 4
"""Turns by which a rank's messages may leave before what comes to it."""


class Window:
    """Number of chunks that one rank may have under way, by how long they take to be received.

    Args:
        delay: seconds by which a chunk may take longer than the fastest one did.
        least, most: bounds of the number.

    Attributes:
        size: the number.
    """

    def __init__(self, *, delay: float = 0.025, least: int = 3, most: int = 64) -> None:
        self.size = least
        self._delay, self._least, self._most = delay, least, most
        self._fastest = float("inf")

    def received(self, seconds: float) -> None:
        """Take note of how long a chunk took."""
        self._fastest = min(self._fastest, seconds)
        if seconds < self._fastest + self._delay:
            self.size = min(self._most, self.size + 1)
        else:
            self.size = max(self._least, self.size - 1)


class Mail(NamedTuple):
    """Communicators of an exchange.

    Attributes:
        everyone: of all workers: fetches travel in it.
        groups: of each group of ranks that can share a block and that this rank is in: shares travel in them.
    """

    everyone: Any
    groups: Mapping[tuple[int, ...], Any]


class UnderWay(NamedTuple):
    """A chunk that is sent or received: of what message, and since when."""

    message: Message
    began: float


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
        mail: the communicators.
        window: of this rank, where messages travel between hosts; None where none does.

    Attributes:
        bytes_sent: payload in bytes that this rank sends.
        ended: number of chunks that have come or gone.
    """

    def __init__(
        self,
        rank: int,
        plan: Exchange,
        buffers: Mapping[int, Tensor],
        copies: Mapping[tuple[int, int], Tensor],
        mail: Mail,
        window: Window | None,
    ) -> None:
        self._rank, self._plan, self._mail, self._window = rank, plan, mail, window
        self._buffers = {block: buffer.numpy() for block, buffer in buffers.items()}
        self._copies = {key: copy.numpy() for key, copy in copies.items()}
        self._requests: list[Any] = []
        self._under_way: list[UnderWay] = []
        self._sending = self.ended = 0
        self._queue: deque[tuple[Message, Numbers]] = deque()
        own: list[tuple[int, Message]] = [
            (turn, message) for turn, message in self._in_turns() if rank in (message.source, message.destination)
        ]
        self._turn = {message: turn for turn, message in own}
        self._departures = [message for _, message in own if message.source == rank]
        self.bytes_sent = sum(self._part(message).nbytes for message in self._departures)
        # Numbers of chunks that have not come: by turn, and for each block of whose part this rank is the owner.
        self._awaited: Counter[int] = Counter()
        self._copies_awaited: Counter[int] = Counter()
        self._chunks_awaited: Counter[Fetch] = Counter()
        # Chunks of shares that have not left, where a part in its final state is to land; and how it comes.
        self._leaving: Counter[tuple[int, int]] = Counter()
        self._landing: dict[tuple[int, int], Fetch] = {}
        for _, message in own:
            if message.destination == rank:
                self._expect(message)
        self._send_what_may_leave()

    def _in_turns(self) -> list[tuple[int, Message]]:
        """Return all messages in order of their turns, shares before fetches."""
        shares, fetches = self._plan.shares, self._plan.fetches
        if self._window is None:
            return [*((0, share) for share in shares), *((1, fetch) for fetch in fetches)]
        of_shares = turns([(share.source, share.destination) for share in shares])
        first = max(of_shares, default=-1) + 1
        of_fetches = [first + turn for turn in turns([(fetch.source, fetch.destination) for fetch in fetches])]
        messages: Sequence[Message] = (*shares, *fetches)
        return sorted(zip((*of_shares, *of_fetches), messages, strict=True), key=lambda pair: pair[0])

    def _part(self, message: Message) -> Numbers:
        buffer = self._buffers[message.block]
        part: Numbers = buffer[self._plan.part(message.block, message.part, buffer.size)]
        return part

    def _chunks(self, numbers: Numbers) -> list[Numbers]:
        if self._window is None or numbers.size == 0:
            return [numbers]
        size = min(MOST_BYTES, max(LEAST_BYTES, numbers.nbytes // CHUNKS)) // numbers.itemsize
        return [numbers[begin : begin + size] for begin in range(0, numbers.size, size)]

    def _way(self, message: Message, other: int) -> tuple[Any, int]:
        """Return the communicator that a message travels in, and there the rank of the worker at its other end."""
        if isinstance(message, Fetch):
            return self._mail.everyone, other
        holders = self._plan.holders[message.block]
        return self._mail.groups[holders], holders.index(other)

    # -- what comes ----------------------------------------------------------------------------------------------

    def _expect(self, message: Message) -> None:
        """Count what comes, and ask for it at once, unless it lands where a copy is that must have left first."""
        if isinstance(message, Share):
            into = self._copies[message.block, message.source]
            self._copies_awaited[message.block] += len(self._chunks(into))
        else:
            into = self._part(message)
        self._awaited[self._turn[message]] += len(self._chunks(into))
        if isinstance(message, Fetch) and self._lands_on_copy(message):
            self._landing[message.block, message.part] = message
        else:
            self._receive(message, into)

    def _lands_on_copy(self, fetch: Fetch) -> bool:
        """Return whether a part comes to where this rank's copy of it is, which must have left first."""
        return self._rank in self._plan.holders[fetch.block]

    def _receive(self, message: Message, into: Numbers) -> None:
        comm, source = self._way(message, message.source)
        if isinstance(message, Fetch):
            self._chunks_awaited[message] = len(self._chunks(into))
        for chunk in self._chunks(into):
            self._requests.append(comm.Irecv(chunk, source=source, tag=message.block))
            self._under_way.append(UnderWay(message, 0.0))

    def _take_in(self, message: Message) -> None:
        turn = self._turn[message]
        self._awaited[turn] -= 1
        if not self._awaited[turn]:
            del self._awaited[turn]
        if isinstance(message, Share):
            self._copies_awaited[message.block] -= 1
            if not self._copies_awaited[message.block]:
                del self._copies_awaited[message.block]
                self._average(message)
        else:
            self._chunks_awaited[message] -= 1
            if not self._chunks_awaited[message]:
                del self._chunks_awaited[message]
                self._has_come(message)

    def _has_come(self, fetch: Fetch) -> None:
        """Act on a part in its final state, all of which has come."""

    def _average(self, share: Share) -> None:
        """Replace a part by the average of all holders' copies, summed in ascending order of ranks."""
        part, holders = self._part(share), self._plan.holders[share.block]
        copies = [part if rank == self._rank else self._copies[share.block, rank] for rank in holders]
        with np.errstate(all="ignore"):  # numbers that are not finite are found where a run looks for them
            for copy in copies[1:]:
                np.add(copies[0], copy, out=copies[0])
            np.multiply(copies[0], part.dtype.type(1.0 / len(holders)), out=part)

    # -- what leaves ---------------------------------------------------------------------------------------------

    def _send_what_may_leave(self) -> None:
        last = min(self._awaited) + AHEAD if self._window is not None and self._awaited else None
        kept = []
        for message in self._departures:
            early = last is not None and self._turn[message] > last
            if early or (isinstance(message, Fetch) and message.block in self._copies_awaited):
                kept.append(message)
                continue
            self._prepare(message)
            chunks = self._chunks(self._part(message))
            self._queue.extend((message, chunk) for chunk in chunks)
            if (message.block, message.part) in self._landing:
                self._leaving[message.block, message.part] += len(chunks)
            self._fill_window()
        self._departures = kept
        self._fill_window()

    def _prepare(self, message: Message) -> None:
        """Make what a message takes with it, right before it leaves."""

    def _fill_window(self) -> None:
        while self._queue and (self._window is None or self._sending < self._window.size):
            self._send(*self._queue.popleft())

    def _send(self, message: Message, chunk: Numbers) -> None:
        comm, destination = self._way(message, message.destination)
        send = comm.Isend if self._window is None else comm.Issend
        self._requests.append(send(chunk, dest=destination, tag=message.block))
        self._under_way.append(UnderWay(message, perf_counter()))
        self._sending += 1

    def _has_left(self, chunk: UnderWay) -> None:
        self._sending -= 1
        if self._window is not None:
            self._window.received(perf_counter() - chunk.began)
        place = (chunk.message.block, chunk.message.part)
        if isinstance(chunk.message, Share) and place in self._landing:
            self._leaving[place] -= 1
            if not self._leaving[place]:
                fetch = self._landing.pop(place)
                self._receive(fetch, self._part(fetch))

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

    def finish(self, progress: Callable[[], None]) -> None:
        """Wait until all is done.

        Args:
            progress: called whenever a chunk has come or gone, as a slow link shows no other.
        """
        from mpi4py import MPI

        while not self._done:
            self._go_on(MPI.Request.Waitsome(self._requests))
            progress()

    def _go_on(self, ended: list[int] | None) -> bool:
        """Act on chunks that have ended, by their places in the list of requests; return whether there are any."""
        if not ended:
            return False
        over = set(ended)
        self.ended += len(ended)
        chunks = [self._under_way[place] for place in ended]
        self._requests = [request for place, request in enumerate(self._requests) if place not in over]
        self._under_way = [chunk for place, chunk in enumerate(self._under_way) if place not in over]
        for chunk in chunks:
            if chunk.message.source == self._rank:
                self._has_left(chunk)
            else:
                self._take_in(chunk.message)
        self._send_what_may_leave()
        return True
