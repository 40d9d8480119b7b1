"""From one partition to the next: who averages which part of a block, and who sends it to whom.

Aggregation (Algorithm 1 of the paper) sets every parameter to its average over the workers that hold it, and then each
block goes to those that hold it next (section 2.5). Neither needs a server or a whole all-reduce. A block is cut into
parts, one for each of its *owners*, in two acts:

1. every holder sends its copy of each part to the part's owner, which averages the copies: a reduce-scatter;
2. every next holder gets each part from its owner, unless it is the owner.

A holder that gives the block away thus never gets its average. A block with one holder is averaged already, and goes
whole to each next holder that lacks it.

Owners are the holders that keep the block, where there are any: both acts then send the fewest bytes that reduce and
hand on a block with c holders and d next ones, c + d - 2 times its size, since an owner that keeps the block sends its
own part in neither act. Where no holder keeps it, c + d - 1 times its size are the fewest, whoever owns its parts, so
all holders do, and share the work.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from resist_hvd.protocol.partition import Partition

BUCKET_BYTES = 32 * 2**20
"""Data-parallel training averages gradients in contiguous buckets of about this size, in bytes: few calls, yet most of
them early."""


@dataclass(frozen=True)
class Share:
    """A holder's copy of a part, on its way to the part's owner, which averages what holders have of it."""

    block: int
    part: int
    source: int
    destination: int


@dataclass(frozen=True)
class Fetch:
    """A part in its final state, on its way from its owner to a next holder of the block."""

    block: int
    part: int
    source: int
    destination: int


@dataclass(frozen=True)
class Exchange:
    """All that happens to the partitioned blocks at the end of a round; the same on every rank.

    Between two ranks at most one part of a block travels in each act and direction, so that act and block name a
    message. No rank sends anything to itself.

    Attributes:
        holders: for each block the ranks that have trained it, ascending: they average it if there are several.
        next_holders: for each block the ranks that hold it next, ascending.
        owners: for each block the holders that average a part of it each, ascending: part j is that of owner j.
        shares: first act, in order of blocks, parts and sources.
        fetches: second act, in order of blocks, parts and destinations.
    """

    holders: tuple[tuple[int, ...], ...]
    next_holders: tuple[tuple[int, ...], ...]
    owners: tuple[tuple[int, ...], ...]

    @cached_property
    def shares(self) -> tuple[Share, ...]:
        """Copies of parts that holders send to owners."""
        return tuple(
            Share(block, part, source, owner)
            for block, owners in enumerate(self.owners)
            for part, owner in enumerate(owners)
            for source in self.holders[block]
            if source != owner
        )

    @cached_property
    def fetches(self) -> tuple[Fetch, ...]:
        """Parts that owners send to next holders."""
        return tuple(
            Fetch(block, part, owner, destination)
            for block, owners in enumerate(self.owners)
            for part, owner in enumerate(owners)
            for destination in self.next_holders[block]
            if destination != owner
        )

    def part(self, block: int, part: int, numbers: int) -> slice:
        """Return where a part lies in the flat buffer of its block, which has so many numbers."""
        edges = part_edges(numbers, len(self.owners[block]))
        return slice(edges[part], edges[part + 1])

    def bytes_sent(self, rank: int, block_bytes: tuple[int, ...], itemsize: int = 4) -> int:
        """Return the payload in bytes that `rank` sends.

        Args:
            rank: the sender.
            block_bytes: the size of each block.
            itemsize: bytes of one number.
        """
        return self._bytes((message for message in self._messages if message.source == rank), block_bytes, itemsize)

    def bytes_received(self, rank: int, block_bytes: tuple[int, ...], itemsize: int = 4) -> int:
        """Return the payload in bytes that `rank` receives; see `bytes_sent`."""
        return self._bytes(
            (message for message in self._messages if message.destination == rank), block_bytes, itemsize
        )

    def busiest(self, block_bytes: tuple[int, ...], itemsize: int = 4) -> int:
        """Return what the busiest rank sends or receives, whichever is more: no exchange is done before that crossed.

        In bytes; see `bytes_sent`.
        """
        ranks = {message.source for message in self._messages} | {message.destination for message in self._messages}
        both = (self.bytes_sent, self.bytes_received)
        return max((count(rank, block_bytes, itemsize) for rank in ranks for count in both), default=0)

    @property
    def _messages(self) -> tuple[Share | Fetch, ...]:
        return self.shares + self.fetches

    def _bytes(self, messages: Iterable[Share | Fetch], block_bytes: tuple[int, ...], itemsize: int) -> int:
        total = 0
        for message in messages:
            edges = part_edges(block_bytes[message.block] // itemsize, len(self.owners[message.block]))
            total += edges[message.part + 1] - edges[message.part]
        return itemsize * total


def part_edges(numbers: int, parts: int) -> tuple[int, ...]:
    """Return where the parts of a buffer begin, and its end: sizes differ by one number at most.

    Args:
        numbers: how many the buffer has.
        parts: into how many it is cut.
    """
    return tuple(numbers * part // parts for part in range(parts + 1))


def ring_bytes(size: int, ranks: int) -> int:
    """Return what one rank sends in a ring all-reduce of `size` bytes among `ranks` ranks: 2 (c - 1) / c of it."""
    return 2 * size * (ranks - 1) // ranks


def exchange(before: Partition, after: Partition) -> Exchange:
    """Work out the exchange that leads from the partition `before` to the partition `after`.

    Every rank computes the same answer alone.

    Raises:
        ValueError: the partitions are of different numbers of workers or blocks.
    """
    if (before.workers, before.blocks) != (after.workers, after.blocks):
        raise ValueError(
            f"partitions differ in shape: {before.workers} workers and {before.blocks} blocks before, "
            f"{after.workers} and {after.blocks} after"
        )
    owners = (
        tuple(rank for rank in holders if rank in following) or holders
        for holders, following in zip(before.holders, after.holders, strict=True)
    )
    return Exchange(before.holders, after.holders, tuple(owners))
