"""Partitions: the blocks that each worker holds in a round."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Partition:
    """One round's deal.

    Attributes:
        held: for each worker the numbers of its blocks, in depth order.
        blocks: how many partitionable blocks there are, over all decks.
    """

    held: tuple[tuple[int, ...], ...]
    blocks: int

    @property
    def workers(self) -> int:
        """S, the number of workers."""
        return len(self.held)

    @cached_property
    def holders(self) -> tuple[tuple[int, ...], ...]:
        """For each block the ranks that hold it, ascending."""
        ranks: list[list[int]] = [[] for _ in range(self.blocks)]
        for rank, held in enumerate(self.held):
            for block in held:
                ranks[block].append(rank)
        return tuple(map(tuple, ranks))

    def leaving(self, after: Partition) -> frozenset[int]:
        """Return the blocks that are averaged or sent on the way to the partition `after`: all but those that stay."""
        holders = zip(self.holders, after.holders, strict=True)
        return frozenset(block for block, (now, then) in enumerate(holders) if len(now) > 1 or now != then)

    @property
    def hands(self) -> tuple[tuple[int, ...], ...]:
        """All hands of the deal, sorted, whoever holds them."""
        return tuple(sorted(self.held))
