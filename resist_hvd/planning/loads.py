"""A network in numbers, as plans know it: the load of each part, and of what a worker has of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from resist_hvd.protocol.rule import depth


class Part(Protocol):
    """A part of a network: a stem, a block, or a head."""

    @property
    def parameters(self) -> int:
        """Number of parameters."""

    @property
    def flops(self) -> int:
        """Of one image's forward pass."""

    @property
    def kept(self) -> int:
        """Numbers that the backward pass needs of one image."""

    @property
    def output(self) -> int:
        """Numbers that it hands on of one image."""


@dataclass(frozen=True)
class Load:
    """A network, or a worker's share of it: parameters, and one image's forward FLOPs and numbers kept."""

    parameters: int
    flops: int
    kept: int


class Thinned(NamedTuple):
    """A part with a share of its filters, in numbers."""

    parameters: int
    flops: int
    kept: int
    output: int


@dataclass(frozen=True)
class Network:
    """A global network in numbers.

    Attributes:
        parts: stem, blocks and head, in order.
        decks: where the blocks that are dealt out stand among them, a range for each deck; a deck's blocks are alike.
    """

    parts: tuple[Part, ...]
    decks: tuple[range, ...]

    @cached_property
    def whole(self) -> Load:
        """All of it, as local SGD and data-parallel training have it on every worker."""
        return total(self.parts)

    @cached_property
    def trunk(self) -> Load:
        """Load of the trunk, which ResIST's workers share."""
        dealt = {place for deck in self.decks for place in deck}
        return total(part for place, part in enumerate(self.parts) if place not in dealt)

    @property
    def partitionable(self) -> int:
        """N, the number of blocks that are dealt out."""
        return sum(map(len, self.decks))

    def block(self, deck: range) -> Part:
        """Return a block of a deck."""
        return self.parts[deck[0]]

    def thinned(self, share: float) -> Network:
        """Return the network with this share of each layer's filters: of weights between two layers its square."""
        last = len(self.parts) - 1
        return Network(
            tuple(_thin(part, share, at_end=place in (0, last)) for place, part in enumerate(self.parts)), ()
        )

    def sub_network(self, workers: int, min_blocks: int) -> Load:
        """Return the trunk and k blocks of each deck, as a worker of ResIST has them."""
        loads = [self.trunk]
        for deck in filter(None, self.decks):
            block, k = self.block(deck), depth(len(deck), workers, min_blocks)
            loads.append(Load(k * block.parameters, k * block.flops, k * block.kept))
        return total(loads)


def _thin(part: Part, share: float, *, at_end: bool) -> Thinned:
    weights = share if at_end else share**2
    return Thinned(
        round(weights * part.parameters),
        round(weights * part.flops),
        round(share * part.kept),
        round(share * part.output),
    )


def total(parts: Iterable[Part | Load]) -> Load:
    """Return the load of some parts together."""
    parts = list(parts)
    return Load(sum(p.parameters for p in parts), sum(p.flops for p in parts), sum(p.kept for p in parts))
