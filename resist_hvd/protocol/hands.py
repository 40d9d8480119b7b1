"""Hands are exchangeable: which worker gets which of the hands that a round's seed dealt.

Data and batches are alike in distribution, and nothing else stays with a worker, so only the network cares. Hands are
given out so that the exchange sends the fewest bytes, and among equals so that the busiest rank's link carries the
fewest. Everything is computed in whole numbers and without chance: every rank finds the same.

Where no block is shared, the fewest bytes are those of an assignment problem, which is solved exactly (Kuhn 1955, by
shortest augmenting paths). Where blocks are shared, holders must be among the rule's groups. Turning and mirroring the
ring of ranks keeps them consecutive, so that all 2 S of these are tried. Where few workers make any set of holders a
group, the best of all is the start of a descent by swaps of two hands.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from resist_hvd.protocol.exchange import FEW_HOLDERS
from resist_hvd.protocol.partition import Partition
from resist_hvd.protocol.rule import Rule

Order = NDArray[np.int64]
"""For each worker the number of the hand that it gets: [S]."""

FEW = 4
"""Up to so many workers all orders are tried."""

SWAPPING = 16
"""Up to so many workers hands are swapped: an order has S (S - 1) / 2 neighbours."""

TRIED_AT_ONCE = 2**16
"""Numbers in a table of all turns that are compared: orders x blocks x workers. Of more turns some are left out."""


def give(rule: Rule, before: Partition, dealt: Partition, numbers: tuple[int, ...]) -> Partition:
    """Return a deal's hands, given to the workers for whom they make the exchange cheapest.

    Args:
        rule: by which both were dealt.
        before: the partition that the exchange begins with.
        dealt: what the next round's seed dealt.
        numbers: how many each block has.
    """
    held, hands = holds(before), holds(dealt)
    sizes = np.array(numbers, dtype=np.int64)
    orders = candidates(rule, held, hands, sizes)
    best, cost = cheapest(orders, held, hands, sizes)
    while rule.any_holders and FEW < rule.workers <= SWAPPING:
        swapped, less = cheapest(neighbours(best), held, hands, sizes)
        if less >= cost:
            break
        best, cost = swapped, less
    return Partition(tuple(dealt.held[hand] for hand in best), dealt.blocks)


def candidates(rule: Rule, held: NDArray[np.bool_], hands: NDArray[np.bool_], sizes: NDArray[np.int64]) -> Order:
    """Return orders that are worth trying, that of the deal among them: [orders, S]."""
    workers = rule.workers
    if rule.any_holders and workers <= FEW:
        return np.array(list(permutations(range(workers))))
    ranks = np.arange(workers)
    turns = np.arange(0, workers, max(1, 2 * held.size * workers // TRIED_AT_ONCE))[:, None]
    ring = np.concatenate([(turns + ranks) % workers, (turns - ranks) % workers])
    if not rule.any_holders:
        return ring
    staying = (held.T * sizes) @ hands.astype(np.int64)
    return np.concatenate([ring, assignment(staying)[None, :]])


def neighbours(order: Order) -> Order:
    """Return the orders in which two workers have swapped hands: [S (S - 1) / 2, S]."""
    first, second = np.triu_indices(len(order), k=1)
    swapped = np.tile(order, (len(first), 1))
    each = np.arange(len(first))
    swapped[each, first], swapped[each, second] = order[second], order[first]
    return swapped


def cheapest(
    orders: Order, held: NDArray[np.bool_], hands: NDArray[np.bool_], sizes: NDArray[np.int64]
) -> tuple[Order, tuple[int, int]]:
    """Return the first of the orders [orders, S] that cost the least, and its cost: all that is sent, and the bound."""
    sent, received = traffic(held, np.moveaxis(hands[:, orders], 1, 0), sizes)
    total, busiest = sent.sum(-1), np.maximum(sent, received).max(-1)
    first = np.lexsort((busiest, total))[0]
    return orders[first], (int(total[first]), int(busiest[first]))


def holds(partition: Partition) -> NDArray[np.bool_]:
    """Return where a worker holds a block: [blocks, workers]."""
    table = np.zeros((partition.blocks, partition.workers), dtype=bool)
    for rank, held in enumerate(partition.held):
        table[list(held), rank] = True
    return table


def traffic(
    before: NDArray[np.bool_], after: NDArray[np.bool_], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return what each rank sends, and what it receives, in the exchange from one partition to another: [..., S] each.

    They are an `Exchange`'s sums, for many next partitions at once.

    Args:
        before: where a worker holds a block: [N, S].
        after: the same of the next partitions: [..., N, S].
        sizes: numbers of each block: [N].
    """
    keeps, size = before & after, sizes[:, None]
    copies, next_copies, keepers = (table.sum(-1, keepdims=True) for table in (before, after, keeps))
    enough = (keepers > 0) & (keepers >= copies - 1) & (copies <= FEW_HOLDERS)
    owns = np.where(enough, keeps, before)  # as `exchange.owners` has it
    ends = owns.cumsum(-1)
    parts = ends[..., -1:]
    own = np.where(owns, size * ends // parts - size * (ends - 1) // parts, 0)
    sent = before * size - own + own * (next_copies - after)
    received = own * (copies - 1) + after * (size - own)
    return sent.sum(-2), received.sum(-2)


def assignment(gain: NDArray[np.int64]) -> Order:
    """Return for each row a column of its own so that the sum of gains is the greatest.

    Args:
        gain: [S, S].
    """
    size = len(gain)
    cost = gain.max(initial=0) - gain
    row_price, column_price = np.zeros(size, np.int64), np.zeros(size + 1, np.int64)
    row_of = np.full(size + 1, -1)  # the last column stands for the row that looks for one
    endless = np.iinfo(np.int64).max // 2
    for row in range(size):
        row_of[size], column = row, size
        distance, came_from = np.full(size, endless), np.full(size, size)
        reached = np.zeros(size + 1, dtype=bool)
        while row_of[column] >= 0:
            reached[column] = True
            reduced = cost[row_of[column]] - row_price[row_of[column]] - column_price[:size]
            nearer = ~reached[:size] & (reduced < distance)
            distance[nearer], came_from[nearer] = reduced[nearer], column
            following = int(np.where(reached[:size], endless, distance).argmin())
            step = distance[following]
            row_price[row_of[reached]] += step
            column_price[reached] -= step
            distance[~reached[:size]] -= step
            column = following
        while column != size:
            row_of[column], column = row_of[came_from[column]], int(came_from[column])
    columns = np.empty(size, np.int64)
    columns[row_of[:size]] = np.arange(size)
    return columns
