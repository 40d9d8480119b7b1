"""Partitions: the blocks that each worker holds in a round.

A *partition* is dealt like cards. N partitionable blocks, S workers, minimum depth m: every worker gets the same depth
``k = max(ceil(N / S), min(m, N))``, so ``S * k`` cards are dealt. Each block has ``S * k // N`` copies, and the first
``S * k % N`` blocks of the round's random permutation have one more. Copies of a block lie side by side in permutation
order, and cards are dealt round-robin. Hence

* every block is held by a worker, and no worker holds a block twice;
* the holders of a block are consecutive ranks, cyclically, so that about ``2 * S`` groups of holders can ever occur;
* where ``N == S * k`` it is the round-robin deal of the paper's section 2.2 exactly.

A network may have several *decks* (a section's identical blocks each), which are dealt one after another by the same
rule: the paper's protocol has one, the third section; its ablation A.1 partitions all sections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from resist_hvd.seeds import derive


def depth(blocks: int, workers: int, min_blocks: int) -> int:
    """Return k, the number of blocks that each worker holds in every round."""
    return max(-(-blocks // workers), min(min_blocks, blocks))


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


def deal(decks: Sequence[int], workers: int, min_blocks: int, seed: int) -> Partition:
    """Deal a round's partition.

    Permutations are those of the blocks' SHA-256 digests, so that they are the same in every version of Python: it does
    not promise that of `random.shuffle`, and ranks that dealt differently would wait for each other's blocks.

    Args:
        decks: the number of blocks of each deck; blocks are numbered through, in the network's order.
        workers: S, the number of workers.
        min_blocks: m, the minimum depth (per deck) of a sub-network.
        seed: the round's seed; the same on all ranks, so that all compute the same partition alone.
    """
    held: list[list[int]] = [[] for _ in range(workers)]
    first = 0
    for blocks in decks:
        permutation = sorted(range(first, first + blocks), key=lambda block: derive(seed, "deal", block))
        dealt = workers * depth(blocks, workers, min_blocks)
        copies, extra = divmod(dealt, blocks) if blocks else (0, 0)
        cards = (block for place, block in enumerate(permutation) for _ in range(copies + (place < extra)))
        for card, block in enumerate(cards):
            held[card % workers].append(block)
        first += blocks
    return Partition(tuple(tuple(sorted(blocks)) for blocks in held), first)


def recorded(held: Sequence[Sequence[int]], decks: Sequence[int], workers: int, min_blocks: int) -> Partition | None:
    """Return a partition that was written down, None where the rule cannot deal it to these workers.

    Args:
        held: for each worker the numbers of its blocks, in depth order.
        decks: the number of blocks of each deck.
        workers: S, the number of workers.
        min_blocks: m, the minimum depth (per deck) of a sub-network.
    """
    if len(held) != workers or not all(type(block) is int for own in held for block in own):
        return None
    edges = list(pairwise(accumulate(decks, initial=0)))
    depths = [depth(blocks, workers, min_blocks) for blocks in decks]
    for own in held:
        if list(own) != sorted(set(own)) or any(not 0 <= block < sum(decks) for block in own):
            return None
        if [sum(first <= block < end for block in own) for first, end in edges] != depths:
            return None
    partition = Partition(tuple(map(tuple, held)), sum(decks))
    groups = {(rank,) for rank in range(workers)} | set(holder_groups(decks, workers, min_blocks))
    return partition if set(partition.holders) <= groups else None


def replicate(decks: Sequence[int], workers: int) -> Partition:
    """Return the partition in which every worker holds every block, as in local SGD and data-parallel training."""
    blocks = sum(decks)
    return Partition((tuple(range(blocks)),) * workers, blocks)


def holder_groups(decks: Sequence[int], workers: int, min_blocks: int) -> tuple[tuple[int, ...], ...]:
    """Return every group of at least two ranks that can come to share a block, in an order all ranks agree on.

    Groups are ascending tuples of ranks. Communicators for them are made once, at the start.
    """
    lengths = set()
    for blocks in decks:
        dealt = workers * depth(blocks, workers, min_blocks)
        if blocks:
            lengths |= {dealt // blocks, -(-dealt // blocks)}
    groups = {
        tuple(sorted((start + step) % workers for step in range(length)))
        for length in lengths
        if length > 1
        for start in range(workers)
    }
    return tuple(sorted(groups))
