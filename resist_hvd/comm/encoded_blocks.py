"""The exchange of blocks that are sent in few bits.

A copy that is to be averaged goes to the owner of its part as codes; the owner adds up its own copy, as it is, and what
the others' codes say, divides, and encodes the average for next holders. A block with one holder is encoded whole. The
owner of a part, too, goes on with what its codes say, where another has them: so all holders have the same bits. What
nobody else gets is not encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from resist_hvd.comm.codec import Codec
from resist_hvd.protocol.exchange import Exchange, Fetch, Share, part_edges


class CodeRoom:
    """Memory for codes, taken once and used again in every round.

    Args:
        device: where numbers are encoded.
        staged: whether codes pass through host memory on their way.
    """

    def __init__(self, device: torch.device, *, staged: bool) -> None:
        self._device, self._staged = device, staged
        self._codes = self._host = torch.empty(0, dtype=torch.uint8)
        self._taken = 0

    def reserve(self, size: int) -> None:
        """Take all back, and have room for so many bytes."""
        self._taken = 0
        if len(self._codes) < size:
            self._codes = self._host = torch.empty(size, dtype=torch.uint8, device=self._device)
            if self._staged:
                self._host = torch.empty(size, dtype=torch.uint8, pin_memory=self._codes.is_cuda)

    def take(self, size: int) -> tuple[Tensor, Tensor]:
        """Return a buffer for so many bytes of codes, and the one that MPI sends or fills: the same, or the host's."""
        taken = slice(self._taken, self._taken + size)
        self._taken += size
        return self._codes[taken], self._host[taken]


class EncodedExchange:
    """An exchange under way: `advance` until all is done, or `finish`.

    Messages are told apart by act, block and ranks, as `Exchange` says. Shares travel in their holders' communicator,
    fetches in that of all.

    Args:
        rank: of this worker.
        plan: the exchange, the same on every rank.
        held: by block number, the buffers of the blocks this rank holds, float32; those that stay are in them at the
            end, what is in the others is then of no use.
        arriving: by block number, the buffers for the blocks this rank receives.
        codec: encodes them.
        room: memory for codes.
        groups: communicators by holders.
        messages: the communicator of all.

    Attributes:
        bytes_sent: payload that this rank has handed over.
    """

    def __init__(
        self,
        rank: int,
        plan: Exchange,
        held: Mapping[int, Tensor],
        arriving: Mapping[int, Tensor],
        codec: Codec,
        room: CodeRoom,
        groups: Mapping[tuple[int, ...], Any],
        messages: Any,
    ) -> None:
        self._rank, self._plan, self._codec, self._room = rank, plan, codec, room
        self._buffers = {**arriving, **held}
        self._groups, self._messages = groups, messages
        self.bytes_sent = 0
        self._requests: list[Any] = []
        self._then: list[Callable[[], None] | None] = []
        self._departing: dict[tuple[int, int], list[Fetch]] = {}
        self._coming: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
        self._missing: dict[int, int] = {}
        self._begin()

    def advance(self) -> bool:
        """Take in what has come, and send what has become ready, without waiting; return whether all is done."""
        from mpi4py import MPI

        while self._act_on(found := MPI.Request.Testsome(self._requests)):
            pass
        return found is None

    def finish(self, progress: Callable[[], None]) -> None:
        """Wait until all is done.

        Args:
            progress: called whenever a message has come or gone.
        """
        from mpi4py import MPI

        while self._act_on(MPI.Request.Waitsome(self._requests)):
            progress()

    def _act_on(self, done: list[int] | None) -> bool:
        """Do what was to follow the requests that are done; return whether there were any."""
        for number in sorted(done or ()):
            then, self._then[number] = self._then[number], None
            if then is not None:
                then()
        return bool(done)

    def _begin(self) -> None:
        """Ask for all that comes; send blocks with one holder, which need no average, then copies to owners."""
        rank, plan = self._rank, self._plan
        for fetch in plan.fetches:
            if fetch.source == rank:
                self._departing.setdefault((fetch.block, fetch.part), []).append(fetch)
        shares = [share for share in plan.shares if rank in (share.source, share.destination)]
        self._reserve(shares, [fetch for fetch in plan.fetches if fetch.destination == rank])
        for fetch in plan.fetches:
            if fetch.destination == rank:
                self._receive(fetch)
        for share in shares:
            if share.destination == rank:
                self._receive_copy(share)
        for block, part in self._departing:
            if block not in self._missing:
                self._send_part(block, part)
        for share in shares:
            if share.source == rank:
                holders = plan.holders[share.block]
                codes = self._encode(self._part(share))
                self._send(self._groups[holders], codes, holders.index(share.destination), share.block)

    def _reserve(self, shares: Sequence[Share], fetches: Sequence[Fetch]) -> None:
        """Have room for the codes of all that comes and goes; those of a part are the same for all that fetch it."""
        departing = [messages[0] for messages in self._departing.values()]
        messages: list[Share | Fetch] = [*shares, *fetches, *departing]
        self._room.reserve(sum(self._codec.bytes_of(self._part(message).numel()) for message in messages))

    def _part(self, message: Share | Fetch) -> Tensor:
        buffer: Tensor = self._buffers[message.block]
        return buffer[part_of(self._plan, message, buffer.numel(), self._codec.group)]

    def _receive(self, fetch: Fetch) -> None:
        """Ask for a part, which is decoded into its place once it is here."""
        numbers = self._part(fetch)
        codes, host = self._room.take(self._codec.bytes_of(numbers.numel()))

        def take_in() -> None:
            self._codec.decode(_on_device(codes, host), numbers)

        self._request(self._messages.Irecv(host.numpy(), source=fetch.source, tag=fetch.block), take_in)

    def _receive_copy(self, share: Share) -> None:
        """Ask for another's copy of a part that this rank owns; the last of them is followed by the average."""
        holders, block = self._plan.holders[share.block], share.block
        codes, host = self._room.take(self._codec.bytes_of(self._part(share).numel()))
        self._coming.setdefault(block, []).append((share.source, codes, host))
        self._missing[block] = self._missing.get(block, 0) + 1

        def count() -> None:
            self._missing[block] -= 1
            if self._missing[block] == 0:
                self._average(self._part(share), block)
                if (block, share.part) in self._departing:
                    self._send_part(block, share.part)

        source = holders.index(share.source)
        self._request(self._groups[holders].Irecv(host.numpy(), source=source, tag=block), count)

    def _average(self, own: Tensor, block: int) -> None:
        """Average this rank's copy of its part and the others', added to it in ascending order of ranks."""
        for _, codes, host in sorted(self._coming[block], key=lambda copy: copy[0]):
            self._codec.decode(_on_device(codes, host), own, add=True)
        own.mul_(1.0 / len(self._plan.holders[block]))

    def _send_part(self, block: int, part: int) -> None:
        """Encode a part in its final state for all that fetch it; go on with what they get, where the block stays."""
        fetches = self._departing[block, part]
        numbers = self._part(fetches[0])
        codes = self._encode(numbers, keep=self._rank in self._plan.next_holders[block])
        for fetch in fetches:
            self._send(self._messages, codes, fetch.destination, block)

    def _encode(self, numbers: Tensor, *, keep: bool = False) -> Tensor:
        """Return the codes of numbers as MPI sends them; `keep` replaces the numbers by what their codes say."""
        codes, host = self._room.take(self._codec.bytes_of(numbers.numel()))
        self._codec.encode(numbers, codes)
        if keep:
            self._codec.decode(codes, numbers)
        return codes if _same(codes, host) else host.copy_(codes)

    def _send(self, comm: Any, codes: Tensor, destination: int, block: int) -> None:
        self.bytes_sent += codes.nbytes
        self._request(comm.Isend(codes.numpy(), dest=destination, tag=block), None)

    def _request(self, request: Any, then: Callable[[], None] | None) -> None:
        self._requests.append(request)
        self._then.append(then)


def part_of(plan: Exchange, message: Share | Fetch, numbers: int, group: int) -> slice:
    """Return where a message's part lies in the flat buffer of its block.

    Parts begin where groups do: in other parts numbers would share a scale with others than the last time.

    Args:
        plan: the exchange.
        message: of a part.
        numbers: how many the block has.
        group: of so many numbers that share a scale.
    """
    edges = part_edges(-(-numbers // group), len(plan.owners[message.block]))
    return slice(edges[message.part] * group, min(edges[message.part + 1] * group, numbers))


def _on_device(codes: Tensor, host: Tensor) -> Tensor:
    """Return codes that have come where they are decoded."""
    return codes if _same(codes, host) else codes.copy_(host)


def _same(codes: Tensor, host: Tensor) -> bool:
    return codes.data_ptr() == host.data_ptr()
