"""From one partition to the next: who averages which part of a block, and who sends it to whom.

Aggregation (Algorithm 1 of the paper) sets every parameter to its average over the workers that hold it, and then each
block goes to those that hold it next (section 2.5). Neither needs a server or a whole all-reduce. A block is cut into
parts, one for each of its *owners*, in two acts:

1. every holder sends its copy of each part to the part's owner, which averages the copies: a reduce-scatter;
2. every next holder gets each part from its owner, unless it is the owner.

A holder that gives the block away thus never gets its average. A block with one holder is averaged already, and goes
whole to each next holder that lacks it. (Several of these could get a part each and pass it on. The busiest link, of 22
blocks, would carry 1 to 4 % less, but messages would wait for messages of which nobody needs an average.)

Who owns a part sends its own copy of it in neither act if it keeps the block, and spares one message if not. So a block
with c holders and d next ones takes the fewest bytes, c + d - 2 times its size, where only holders that keep it own
parts; and c + d - 1 times where none keeps it, whoever owns them. Holders that keep it are its owners, therefore, where
they are enough for the work; otherwise all holders are, and share it (`owners`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from resist_hvd.protocol.partition import Partition

BUCKET_BYTES = 32 * 2**20
"""Data-parallel training averages gradients in contiguous buckets of about this size, in bytes: few calls, yet most of
them early."""

PIECE_BYTES = 4 * 2**20
"""Most bytes of a piece of an average beside steps. Two are under way: Horovod averages one, and the next waits for it.
"""

PIECES = 32
"""A small buffer is cut into so many pieces, so that two are little of it; but none is smaller than `LEAST_BYTES`."""

LEAST_BYTES = 64 * 2**10
"""A smaller piece would wait for Horovod's next cycle longer than it travels."""

FEW_HOLDERS = 3
"""Of a block with more holders all own a part. With four, the busiest link of 8 workers that hold 6 of 12 blocks each
would carry 7 % more; with any number, that of 64 workers with 5 of 22 blocks each four fifths more."""


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
        before: who has trained which block.
        after: who holds which block next.
        shares: first act, in order of blocks, parts and sources.
        fetches: second act, in order of blocks, parts and destinations.
    """

    before: Partition
    after: Partition

    @property
    def holders(self) -> tuple[tuple[int, ...], ...]:
        """For each block the ranks that have trained it, ascending: they average it if there are several."""
        return self.before.holders

    @property
    def next_holders(self) -> tuple[tuple[int, ...], ...]:
        """For each block the ranks that hold it next, ascending."""
        return self.after.holders

    @cached_property
    def owners(self) -> tuple[tuple[int, ...], ...]:
        """For each block the holders that average a part of it each, ascending: part j is that of owner j.

        A holder that keeps a block is always one of them.
        """
        return tuple(map(owners, self.holders, self.next_holders))

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
        return self._traffic(block_bytes, itemsize)[0][rank]

    def bytes_received(self, rank: int, block_bytes: tuple[int, ...], itemsize: int = 4) -> int:
        """Return the payload in bytes that `rank` receives; see `bytes_sent`."""
        return self._traffic(block_bytes, itemsize)[1][rank]

    def busiest(self, block_bytes: tuple[int, ...], itemsize: int = 4) -> int:
        """Return what the busiest rank sends or receives, whichever is more: no exchange is done before that crossed.

        In bytes; see `bytes_sent`.
        """
        return max(map(max, self._traffic(block_bytes, itemsize)))

    def _traffic(self, block_bytes: tuple[int, ...], itemsize: int) -> tuple[list[int], list[int]]:
        """Return what each rank sends, and what each receives, in bytes."""
        sent, received = [0] * self.before.workers, [0] * self.before.workers
        for block, (holders, following) in enumerate(zip(self.holders, self.next_holders, strict=True)):
            edges = part_edges(block_bytes[block] // itemsize, len(self.owners[block]))
            parts = (itemsize * (end - first) for first, end in pairwise(edges))
            own = dict(zip(self.owners[block], parts, strict=True))
            whole = itemsize * edges[-1]
            for rank in holders:
                part = own.get(rank, 0)
                sent[rank] += whole - part + part * (len(following) - (rank in following))
                received[rank] += part * (len(holders) - 1)
            for rank in following:
                received[rank] += whole - own.get(rank, 0)
        return sent, received


def part_edges(numbers: int, parts: int) -> tuple[int, ...]:
    """Return where the parts of a buffer begin, and its end: sizes differ by one number at most.

    Args:
        numbers: how many the buffer has.
        parts: into how many it is cut.
    """
    return tuple(numbers * part // parts for part in range(parts + 1))


def owners(holders: tuple[int, ...], next_holders: tuple[int, ...]) -> tuple[int, ...]:
    """Return the holders of a block that average a part of it each, ascending.

    Those that keep it do, where each of them gets at most one block in copies, for which there is room where its own
    gradients were, and at most `FEW_HOLDERS` share it: what a holder more sends is then a large part of all, and a
    link that carries more than others is rare.
    """
    keepers = tuple(rank for rank in holders if rank in next_holders)
    enough = keepers and len(keepers) >= len(holders) - 1 and len(holders) <= FEW_HOLDERS
    return keepers if enough else holders


def ring_bytes(size: int, ranks: int) -> int:
    """Return what one rank sends in a ring all-reduce of `size` bytes among `ranks` ranks: 2 (c - 1) / c of it."""
    return 2 * size * (ranks - 1) // ranks


def piece_bytes(size: int) -> int:
    """Return the bytes of a piece of `size` bytes that are averaged beside steps."""
    return min(PIECE_BYTES, max(size // PIECES, LEAST_BYTES), size)


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
    return Exchange(before, after)
