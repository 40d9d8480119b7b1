"""The exchange of blocks that are sent in few bits.

A copy that is to be averaged goes to the owner of its part as codes; the owner adds up its own copy, as it is, and what
the others' codes say, divides, and encodes the average for next holders. A block with one holder is encoded whole. The
owner of a part, too, goes on with what its codes say, where another has them: so all holders have the same bits. What
nobody else gets is not encoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from resist_hvd.comm.blocks import Mail, Message, Numbers, PendingExchange
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


class EncodedExchange(PendingExchange):
    """An exchange under way of which codes are sent; see `PendingExchange`.

    Args:
        rank: of this worker.
        plan: the exchange, the same on every rank.
        buffers: by block number, those that this rank holds or receives, float32.
        codec: encodes them.
        room: memory for codes.
        mail: what carries it.
        window: how many chunks this rank may have under way, where messages travel between hosts; None where none does.
    """

    by_chunks = False

    def __init__(
        self,
        rank: int,
        plan: Exchange,
        buffers: Mapping[int, Tensor],
        codec: Codec,
        room: CodeRoom,
        mail: Mail,
        window: int | None,
    ) -> None:
        self._here, self._of, self._whole, self._codec = rank, plan, buffers, codec
        shares = [share for share in plan.shares if rank in (share.source, share.destination)]
        fetches = [fetch for fetch in plan.fetches if rank in (fetch.source, fetch.destination)]
        messages: list[Message] = [*shares, *fetches]
        places = {self._place(message): message for message in messages}
        sizes = {place: codec.bytes_of(self._numbers(message).numel()) for place, message in places.items()}
        room.reserve(sum(sizes.values()))
        self._codes = {place: room.take(size) for place, size in sizes.items()}
        self._encoded: set[tuple[type[Message], int, int, int]] = set()
        for message in places.values():
            # What is to stay here as its codes say must do so before steps that are made beside this exchange.
            if message.source == rank and isinstance(message, Fetch) and self._stays_with_its_only_holder(message):
                self._encode(message)
        copies = {
            (share.block, share.source): self._codes[self._place(share)][1]
            for share in shares
            if share.destination == rank
        }
        super().__init__(rank, plan, {}, copies, mail, window)

    def _place(self, message: Message) -> tuple[type[Message], int, int, int]:
        """Return what tells the codes of a message from others: all that fetch a part get the same."""
        return type(message), message.block, message.part, message.source

    def _numbers(self, message: Message) -> Tensor:
        whole: Tensor = self._whole[message.block]
        return whole[part_of(self._of, message, whole.numel(), self._codec.group)]

    def _encode(self, message: Message) -> None:
        """Encode what a message takes with it; go on with what a part's fetchers get, where the block stays."""
        numbers, (codes, host) = self._numbers(message), self._codes[self._place(message)]
        self._encoded.add(self._place(message))
        self._codec.encode(numbers, codes)
        if isinstance(message, Fetch) and self._here in self._of.next_holders[message.block]:
            self._codec.decode(codes, numbers)
        if codes.data_ptr() != host.data_ptr():
            host.copy_(codes)

    def _decode(self, message: Message, *, add: bool) -> None:
        codes, host = self._codes[self._place(message)]
        if codes.data_ptr() != host.data_ptr():
            codes.copy_(host)
        self._codec.decode(codes, self._numbers(message), add=add)

    def _part(self, message: Message) -> Numbers:
        """Return the codes of a message."""
        codes: Numbers = self._codes[self._place(message)][1].numpy()
        return codes

    def _lands_on_copy(self, fetch: Fetch) -> bool:
        """No codes land where others are."""
        return False

    def _stays_with_its_only_holder(self, fetch: Fetch) -> bool:
        return len(self._of.holders[fetch.block]) == 1 and self._here in self._of.next_holders[fetch.block]

    def _prepare(self, message: Message) -> None:
        """Encode what a message takes with it, unless an average or a message before it has."""
        if self._place(message) not in self._encoded:
            self._encode(message)

    def _has_come(self, fetch: Fetch) -> None:
        self._decode(fetch, add=False)

    def _average(self, share: Share, chunk: int) -> None:
        """Average this rank's copy of its part and the others', added to it in ascending order of ranks."""
        holders, own = self._of.holders[share.block], self._numbers(share)
        for rank in holders:
            if rank != self._here:
                self._decode(replace(share, source=rank), add=True)
        own.mul_(1.0 / len(holders))
        departing = (fetch for fetch in self._of.fetches if fetch.source == self._here)
        part = [fetch for fetch in departing if (fetch.block, fetch.part) == (share.block, share.part)]
        if part:
            self._encode(part[0])


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
