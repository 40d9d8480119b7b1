"""From one partition to the next: who averages a block, who sends it, and who receives it.

Aggregation (Algorithm 1 of the paper) sets every parameter to its average over the workers that hold it. A block with
one holder is already aggregated. Then a block goes straight from one of its holders to each of its next holders that
lacks it (the paper's section 2.5): nothing passes through a server, and nothing is sent to a rank that has it.
"""

from __future__ import annotations

from dataclasses import dataclass

from resist_hvd.protocol.partition import Partition

BUCKET_BYTES = 32 * 2**20
"""Data-parallel training averages gradients in contiguous buckets of about this size, in bytes: few calls, yet most of
them early."""


@dataclass(frozen=True)
class Average:
    """A block that its several holders average among themselves."""

    block: int
    holders: tuple[int, ...]


@dataclass(frozen=True)
class Transfer:
    """A block that travels from one of its holders to a next holder that lacks it."""

    block: int
    source: int
    destination: int


@dataclass(frozen=True)
class Exchange:
    """All that happens to the partitioned blocks at the end of a round; the same on every rank."""

    averages: tuple[Average, ...]
    transfers: tuple[Transfer, ...]

    def bytes_sent(self, rank: int, block_bytes: tuple[int, ...]) -> int:
        """Return the payload in bytes that `rank` sends, for blocks of the given sizes (one size a block)."""
        averaging = sum(ring_bytes(block_bytes[a.block], len(a.holders)) for a in self.averages if rank in a.holders)
        return averaging + sum(block_bytes[t.block] for t in self.transfers if t.source == rank)


def ring_bytes(size: int, ranks: int) -> int:
    """Return what one rank sends in a ring all-reduce of `size` bytes among `ranks` ranks: 2 (c - 1) / c of it."""
    return 2 * size * (ranks - 1) // ranks


def exchange(before: Partition, after: Partition) -> Exchange:
    """Work out the exchange that leads from the partition `before` to the partition `after`.

    Among the holders of a block the one that has the fewest sends so far becomes the source (the lowest rank of
    those), so that no rank's link carries much more than another's. Every rank computes the same answer alone.

    Raises:
        ValueError: the partitions are of different numbers of workers or blocks.
    """
    if (before.workers, before.blocks) != (after.workers, after.blocks):
        raise ValueError(
            f"partitions differ in shape: {before.workers} workers and {before.blocks} blocks before, "
            f"{after.workers} and {after.blocks} after"
        )
    averages = tuple(Average(b, holders) for b, holders in enumerate(before.holders) if len(holders) > 1)
    sends = [0] * before.workers
    transfers = []
    for block, holders in enumerate(before.holders):
        for destination in after.holders[block]:
            if destination not in holders:
                source = min(holders, key=lambda rank: (sends[rank], rank))
                sends[source] += 1
                transfers.append(Transfer(block, source, destination))
    return Exchange(averages, tuple(transfers))
