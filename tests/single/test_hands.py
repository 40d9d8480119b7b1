"""Hands are given to the workers for whom they make the exchange cheapest, and are those that were dealt."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resist_hvd.protocol.exchange import exchange
from resist_hvd.protocol.hands import assignment, give
from resist_hvd.protocol.partition import Partition
from resist_hvd.protocol.rule import Rule

seeds = st.integers(0, 2**62)


@st.composite
def rules(draw: st.DrawFn, workers: st.SearchStrategy[int]) -> Rule:
    """Rules of one or two decks."""
    decks = draw(st.lists(st.integers(1, 24), min_size=1, max_size=2))
    return Rule(tuple(decks), draw(workers), draw(st.integers(0, 26)))


def sizes_of(rule: Rule) -> tuple[int, ...]:
    """Numbers of each block: another size in each deck."""
    return tuple(64 * (3 * deck + 1) for deck, blocks in enumerate(rule.decks) for _ in range(blocks))


def cost(before: Partition, after: Partition, sizes: tuple[int, ...]) -> tuple[int, int]:
    plan = exchange(before, after)
    return sum(plan.bytes_sent(rank, sizes, 1) for rank in range(before.workers)), plan.busiest(sizes, 1)


def orders_of(partition: Partition, orders: list[tuple[int, ...]]) -> list[Partition]:
    return [Partition(tuple(partition.held[hand] for hand in order), partition.blocks) for order in orders]


@given(rules(st.integers(1, 20)), seeds, seeds)
def test_the_hands_are_those_that_were_dealt_and_their_holders_are_groups(rule: Rule, one: int, other: int) -> None:
    before, dealt = rule.deal(one), rule.deal(other)
    for _ in range(2):
        after = give(rule, before, dealt, sizes_of(rule))
        assert after.hands == dealt.hands
        assert after.blocks == dealt.blocks
        assert {holders for holders in after.holders if len(holders) > 1} <= set(rule.groups)
        assert rule.recorded(after.held) == after
        before = after


@given(rules(st.integers(1, 9)), seeds, seeds)
def test_no_turn_of_the_ring_is_cheaper(rule: Rule, one: int, other: int) -> None:
    before, dealt, sizes = rule.deal(one), rule.deal(other), sizes_of(rule)
    s = rule.workers
    turns = [tuple((turn + way * rank) % s for rank in range(s)) for turn in range(s) for way in (1, -1)]
    found = cost(before, give(rule, before, dealt, sizes), sizes)
    assert found <= min(cost(before, turned, sizes) for turned in orders_of(dealt, turns))


@given(rules(st.integers(1, 4)), seeds, seeds)
def test_nothing_is_cheaper_where_workers_are_few(rule: Rule, one: int, other: int) -> None:
    before, dealt, sizes = rule.deal(one), rule.deal(other), sizes_of(rule)
    everything = orders_of(dealt, list(permutations(range(rule.workers))))
    assert cost(before, give(rule, before, dealt, sizes), sizes) == min(cost(before, o, sizes) for o in everything)


@given(st.integers(1, 6), st.integers(1, 3), seeds, seeds)
def test_the_most_blocks_stay_where_none_is_shared(s: int, k: int, one: int, other: int) -> None:
    rule = Rule((s * k,), s)
    before, dealt, sizes = rule.deal(one), rule.deal(other), (64,) * (s * k)

    def staying(after: Partition) -> int:
        return sum(len(set(old) & set(new)) for old, new in zip(before.held, after.held, strict=True))

    everything = orders_of(dealt, list(permutations(range(s))))
    assert staying(give(rule, before, dealt, sizes)) == max(map(staying, everything))


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 20), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_an_assignment_gains_the_most(gains: list[list[int]]) -> None:
    gain = np.array(gains)
    columns = assignment(gain)
    rows = range(len(gain))
    assert sorted(columns) == list(rows)
    assert sum(gain[rows, columns]) == max(sum(gain[rows, list(order)]) for order in permutations(rows))


def test_the_same_deal_stays() -> None:
    rule = Rule((22,), 5, 6)
    partition = rule.deal(3)
    assert give(rule, partition, partition, (64,) * 22) == partition
    turned = orders_of(partition, [(2, 3, 4, 0, 1)])[0]
    assert give(rule, partition, turned, (64,) * 22) == partition


@pytest.mark.parametrize(
    ("workers", "blocks", "min_blocks", "most"),
    [(2, 12, 6, 0.70), (4, 12, 6, 0.90), (4, 22, 6, 0.80), (4, 12, 3, 0.73), (8, 22, 6, 0.90), (8, 24, 3, 0.70)],
)
def test_fewer_bytes_are_sent(workers: int, blocks: int, min_blocks: int, most: float) -> None:
    rule, sizes = Rule((blocks,), workers, min_blocks), (64,) * blocks
    as_dealt, given_out = [], []
    before = rule.deal(0)
    for seed in range(1, 40):
        dealt = rule.deal(seed)
        after = give(rule, before, dealt, sizes)
        as_dealt.append(cost(before, dealt, sizes)[0])
        given_out.append(cost(before, after, sizes)[0])
        before = after
    assert sum(given_out) <= most * sum(as_dealt)


def test_many_workers_are_served() -> None:
    for rule in (Rule((64,), 64), Rule((22,), 300, 5)):
        before, dealt = rule.deal(1), rule.deal(2)
        after = give(rule, before, dealt, (64,) * rule.blocks)
        assert after.hands == dealt.hands
        assert cost(before, after, (64,) * rule.blocks) <= cost(before, dealt, (64,) * rule.blocks)
