"""The rule by which blocks are dealt to workers, like cards.

N partitionable blocks, S workers, minimum depth m: every worker gets ``k = max(ceil(N / S), min(m, N))`` blocks, so
``S * k`` cards are dealt. Each block has ``S * k // N`` copies, and the first ``S * k % N`` blocks of the round's
random permutation have one more. Copies of a block lie side by side in permutation order, and cards are dealt
round-robin. Hence

* every block is held by a worker, and no worker holds a block twice;
* the holders of a block are consecutive ranks, cyclically, so that about ``2 * S`` groups of holders can ever occur,
  unless hands are then given to workers in another order (`protocol.hands`);
* where ``N == S * k`` it is the round-robin deal of the paper's section 2.2 exactly.

A network may have several *decks* (a section's identical blocks each), which are dealt one after another by the same
rule: the paper's protocol has one, the third section; its ablation A.1 partitions all sections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, combinations, pairwise
from math import comb

from resist_hvd.protocol.partition import Partition
from resist_hvd.seeds import derive

MOST_GROUPS = 100
"""Up to so many groups of ranks may be made at the start so that hands can be given to any worker (8 ranks on one host
take half a second for 150). Beyond, a block's holders stay consecutive ranks."""


def depth(blocks: int, workers: int, min_blocks: int) -> int:
    """Return k, the number of a deck's blocks that each worker holds in every round."""
    return max(-(-blocks // workers), min(min_blocks, blocks))


@dataclass(frozen=True)
class Rule:
    """The rule of the deal.

    Attributes:
        decks: the number of blocks of each deck; blocks are numbered through, in the network's order.
        workers: S, the number of workers.
        min_blocks: m, the minimum depth (per deck) of a sub-network.
    """

    decks: tuple[int, ...]
    workers: int
    min_blocks: int = 0

    @property
    def blocks(self) -> int:
        """N, the number of partitionable blocks, over all decks."""
        return sum(self.decks)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """For each deck k, the number of its blocks that each worker holds in every round."""
        return tuple(depth(blocks, self.workers, self.min_blocks) for blocks in self.decks)

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """For each deck k / N, by which the global network scales its blocks: 1 / S where none is shared.

        The paper's section 2.6; with a minimum depth as in the authors' code, but for any number of blocks.
        """
        return tuple(k / blocks if blocks else 1.0 for k, blocks in zip(self.depths, self.decks, strict=True))

    def deal(self, seed: int) -> Partition:
        """Deal a round's partition.

        Permutations are those of the blocks' SHA-256 digests, so that they are the same in every version of Python: it
        does not promise that of `random.shuffle`, and ranks that dealt differently would wait for each other's blocks.

        Args:
            seed: the round's; the same on all ranks, so that all compute the same partition alone.
        """
        held: list[list[int]] = [[] for _ in range(self.workers)]
        first = 0
        for blocks, k in zip(self.decks, self.depths, strict=True):
            permutation = sorted(range(first, first + blocks), key=lambda block: derive(seed, "deal", block))
            copies, extra = divmod(self.workers * k, blocks) if blocks else (0, 0)
            cards = (block for place, block in enumerate(permutation) for _ in range(copies + (place < extra)))
            for card, block in enumerate(cards):
                held[card % self.workers].append(block)
            first += blocks
        return Partition(tuple(tuple(sorted(blocks)) for blocks in held), first)

    def replicated(self) -> Partition:
        """Return the partition in which every worker holds every block, as in local SGD and data-parallel training."""
        return Partition((tuple(range(self.blocks)),) * self.workers, self.blocks)

    def recorded(self, held: Sequence[Sequence[int]]) -> Partition | None:
        """Return a partition that was written down, None where this rule cannot deal it.

        Args:
            held: for each worker the numbers of its blocks, in depth order.
        """
        if len(held) != self.workers or not all(type(block) is int for own in held for block in own):
            return None
        edges = list(pairwise(accumulate(self.decks, initial=0)))
        for own in held:
            if list(own) != sorted(set(own)) or any(not 0 <= block < self.blocks for block in own):
                return None
            if tuple(sum(first <= block < end for block in own) for first, end in edges) != self.depths:
                return None
        partition = Partition(tuple(map(tuple, held)), self.blocks)
        groups = {(rank,) for rank in range(self.workers)} | set(self.groups)
        return partition if set(partition.holders) <= groups else None

    @cached_property
    def _lengths(self) -> set[int]:
        """Numbers of holders, more than one, that blocks can have."""
        lengths = set()
        for blocks, k in zip(self.decks, self.depths, strict=True):
            if blocks:
                lengths |= {self.workers * k // blocks, -(-self.workers * k // blocks)}
        return {length for length in lengths if length > 1}

    @cached_property
    def any_holders(self) -> bool:
        """True where any ranks can come to share a block, not only consecutive ones: the groups are few even so."""
        return sum(comb(self.workers, length) for length in self._lengths) <= MOST_GROUPS

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Every group of at least two ranks that can come to share a block, in an order all ranks agree on.

        Groups are ascending tuples of ranks. Communicators for them are made once, at the start.
        """
        if self.any_holders:
            return tuple(sorted(g for length in self._lengths for g in combinations(range(self.workers), length)))
        groups = {
            tuple(sorted((start + step) % self.workers for step in range(length)))
            for length in self._lengths
            for start in range(self.workers)
        }
        return tuple(sorted(groups))
