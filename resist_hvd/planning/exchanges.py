"""Mean bytes of exchanges of blocks, found by some rounds of the protocol itself: deals, hands and plans."""

from __future__ import annotations

from functools import cache

import numpy as np

from resist_hvd.protocol.exchange import FEW_HOLDERS
from resist_hvd.protocol.hands import give, holds, traffic
from resist_hvd.protocol.rule import Rule

ROUNDS = 48
"""Rounds of which exchanges are worked out, over the number of workers: more workers take longer, and differ less."""

MANY = 32
"""Beyond so many workers a closed formula tells what exchanges send."""


@cache
def exchanged(decks: tuple[int, ...], sizes: tuple[int, ...], workers: int, min_blocks: int) -> tuple[float, float]:
    """Return the numbers that all ranks send for blocks in a round, and the most that pass one rank's link either way.

    They are means over `ROUNDS` / S rounds of the protocol, two at least. Where more than `FEW_HOLDERS` workers
    share each block, and many work, turning the ring of hands gains less than 1 %, and no link carries 3 % more than
    the mean. There, of a deck of N blocks of B numbers and depth k, a block with c holders and d next ones takes (c + d
    - 1 - k / N) B, since deals are independent: (2 S k - N - k) B in all.

    Args:
        decks: the number of blocks of each.
        sizes: parameters of a block of each.
        workers: S.
        min_blocks: m.
    """
    rule = Rule(decks, workers, min_blocks)
    dealt = [(n, k, size) for n, k, size in zip(decks, rule.depths, sizes, strict=True) if n]
    if workers > MANY and all(workers * k // n > FEW_HOLDERS for n, k, _ in dealt):
        sent = float(sum(size * (2 * workers * k - n - k) for n, k, size in dealt))
        return sent, sent / workers
    numbers = tuple(size for n, size in zip(decks, sizes, strict=True) for _ in range(n))
    before, sent, most = rule.deal(0), 0, 0
    rounds = max(2, ROUNDS // workers)
    for seed in range(1, rounds + 1):
        after = give(rule, before, rule.deal(seed), numbers)
        both = traffic(holds(before), holds(after), np.array(numbers, np.int64))
        sent, most, before = sent + int(both[0].sum()), most + int(max(each.max() for each in both)), after
    return sent / rounds, most / rounds
