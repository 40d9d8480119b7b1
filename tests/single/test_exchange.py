"""From one deal to the next: who averages, sends and receives, and how many bytes that is."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resist_hvd.protocol.exchange import exchange, ring_bytes
from resist_hvd.protocol.rule import Rule

numbers = st.integers(1, 24)
workers = st.integers(1, 9)
least = st.integers(0, 26)
seeds = st.integers(0, 2**62)


@given(numbers, workers, least, seeds, seeds)
def test_each_next_holder_gets_what_it_lacks_once_and_from_a_holder(n: int, s: int, m: int, a: int, b: int) -> None:
    before, after = Rule((n,), s, m).deal(a), Rule((n,), s, m).deal(b)
    plan = exchange(before, after)
    arrivals = Counter((t.block, t.destination) for t in plan.transfers)
    lacking = {
        (block, rank) for rank, held in enumerate(after.held) for block in held if block not in before.held[rank]
    }
    assert set(arrivals) == lacking
    assert all(count == 1 for count in arrivals.values())
    assert all(t.source in before.holders[t.block] for t in plan.transfers)
    assert {(a.block, a.holders) for a in plan.averages} == {
        (block, holders) for block, holders in enumerate(before.holders) if len(holders) > 1
    }


@given(numbers, workers, least, seeds, seeds)
def test_bytes_are_those_of_what_is_sent(n: int, s: int, m: int, a: int, b: int) -> None:
    before, after = Rule((n,), s, m).deal(a), Rule((n,), s, m).deal(b)
    plan = exchange(before, after)
    sizes = tuple(12 * (block + 1) for block in range(n))
    moved = sum(sizes[t.block] for t in plan.transfers)
    averaged = sum(
        ring_bytes(sizes[average.block], len(average.holders)) * len(average.holders) for average in plan.averages
    )
    assert sum(plan.bytes_sent(rank, sizes) for rank in range(s)) == moved + averaged


@given(numbers, workers, least, seeds, seeds)
def test_sends_are_spread_among_the_holders(n: int, s: int, m: int, a: int, b: int) -> None:
    before, after = Rule((n,), s, m).deal(a), Rule((n,), s, m).deal(b)
    sends = [0] * s
    for transfer in exchange(before, after).transfers:
        fewest = min(sends[rank] for rank in before.holders[transfer.block])
        assert sends[transfer.source] == fewest
        sends[transfer.source] += 1
    # Nobody sends more than each of its blocks to all others.
    assert max(sends) <= len(before.held[0]) * (s - 1)


@given(numbers, workers, least, st.lists(seeds, min_size=2, max_size=5))
def test_nothing_is_lost_over_several_rounds(n: int, s: int, m: int, rounds: list[int]) -> None:
    partitions = [Rule((n,), s, m).deal(seed) for seed in rounds]
    stores = [{block: {rank} for block in held} for rank, held in enumerate(partitions[0].held)]
    for before, after in pairwise(partitions):
        plan = exchange(before, after)
        for average in plan.averages:
            joint = set[int]().union(*(stores[rank][average.block] for rank in average.holders))
            for rank in average.holders:
                stores[rank][average.block] = joint
        arriving = [(t.destination, t.block, stores[t.source][t.block]) for t in plan.transfers]
        for destination, block, value in arriving:
            assert block not in stores[destination]
            stores[destination][block] = value
        stores = [{block: store[block] for block in held} for store, held in zip(stores, after.held, strict=True)]
    # In every copy of a block is what each of its first holders made of it, and nothing else.
    for store in stores:
        for block, makers in store.items():
            assert makers == set(partitions[0].holders[block])


def test_the_same_deal_again_moves_nothing() -> None:
    partition = Rule((22,), 4, 5).deal(1)
    assert exchange(partition, partition).transfers == ()


def test_a_ring_all_reduce_sends_the_buffer_nearly_twice() -> None:
    assert [ring_bytes(1200, ranks) for ranks in (1, 2, 3, 4)] == [0, 1200, 1600, 1800]


def test_partitions_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="4 workers and 22 blocks before, 2 and 22 after"):
        exchange(Rule((22,), 4, 0).deal(1), Rule((22,), 2, 0).deal(1))
