"""Pieces of a buffer that all workers have, of which each averages a part: where they lie, and when messages leave."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from resist_hvd.protocol.exchange import Exchange, Fetch, Share, part_edges
from resist_hvd.protocol.partition import Partition


@dataclass(frozen=True)
class Pieces:
    """A buffer in pieces, each of which is exchanged as a block that all hold before and after.

    Attributes:
        groups: that the buffer has: what is never parted.
        workers: S, who own a part of each piece.
        count: of the pieces.
    """

    groups: int
    workers: int
    count: int

    @cached_property
    def plan(self) -> Exchange:
        """The exchange: copies of all parts to their owners, and averages of these to all."""
        of_all = Partition((tuple(range(self.count)),) * self.workers, self.count)
        return Exchange(of_all, of_all)

    @cached_property
    def _edges(self) -> tuple[tuple[int, ...], ...]:
        """For each piece where its parts begin, and its end."""
        edges = part_edges(self.groups, self.count)
        return tuple(
            tuple(first + edge for edge in part_edges(edges[piece + 1] - first, self.workers))
            for piece, first in enumerate(edges[:-1])
        )

    def part(self, piece: int, owner: int) -> slice:
        """Return the groups of a worker's part of a piece."""
        edges = self._edges[piece]
        return slice(edges[owner], edges[owner + 1])

    def owned(self, owner: int, pieces: int | None = None) -> int:
        """Return how many groups a worker's parts have, of all pieces or of the first so many."""
        return sum(edges[owner + 1] - edges[owner] for edges in self._edges[:pieces])

    def copy(self, piece: int, source: int, owner: int) -> slice:
        """Return where a copy of a part is with its owner, in groups: one worker's after the other."""
        part = self.part(piece, owner)
        first = (source - (source > owner)) * self.owned(owner) + self.owned(owner, piece)
        return slice(first, first + part.stop - part.start)

    @cached_property
    def in_turns(self) -> tuple[tuple[int, Share | Fetch], ...]:
        """All messages in order of their turns, in each of which a rank sends one and receives one.

        In each stage every rank sends to all others, first to the next one. Averages of a piece follow the copies of
        the next, so that links are full while they are computed.
        """
        found: list[tuple[int, Share | Fetch]] = []
        messages: tuple[Share | Fetch, ...] = (*self.plan.shares, *self.plan.fetches)
        for message in messages:
            if isinstance(message, Share):
                stage = max(0, 2 * message.block - 1)
            else:
                stage = min(2 * message.block + 2, 2 * self.count - 1)
            ahead = (message.destination - message.source) % self.workers
            found.append((stage * (self.workers - 1) + ahead - 1, message))
        return tuple(sorted(found, key=lambda pair: pair[0]))
