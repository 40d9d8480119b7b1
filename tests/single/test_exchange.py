"""From one deal to the next: who averages which part, who sends it to whom, and how many bytes that is."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resist_hvd.protocol.exchange import exchange, part_edges, ring_bytes
from resist_hvd.protocol.hands import holds, traffic
from resist_hvd.protocol.partition import Partition
from resist_hvd.protocol.rule import Rule

numbers = st.integers(1, 24)
workers = st.integers(1, 9)
least = st.integers(0, 26)
seeds = st.integers(0, 2**62)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[Partition, Partition]:
    """Two partitions, each dealt by the same rule."""
    rule = Rule((draw(numbers),), draw(workers), draw(least))
    return rule.deal(draw(seeds)), rule.deal(draw(seeds))


def blocks_sizes(blocks: int) -> tuple[int, ...]:
    """Bytes of blocks that no number of owners divides evenly."""
    return tuple(4 * (97 + 3 * block) for block in range(blocks))


def fewest(before: tuple[int, ...], after: tuple[int, ...]) -> int:
    """How many times a block must be sent at least to average it and hand it on, by counting who has what.

    Each of c holders' values must meet in one place, and the average must reach d ranks. A part whose meeting place is
    a holder spares a message inwards, one at a next holder spares a message outwards.
    """
    spared = max((rank in before) + (rank in after) for rank in {*before, *after})
    return len(before) + len(after) - spared


@given(rounds())
def test_owners_get_each_copy_of_their_part_and_next_holders_get_every_part(pair: tuple[Partition, Partition]) -> None:
    before, after = pair
    plan = exchange(before, after)
    for block, (holders, following) in enumerate(zip(before.holders, after.holders, strict=True)):
        owners = plan.owners[block]
        keepers = set(holders) & set(following)
        assert set(owners) in (keepers, set(holders))
        assert keepers <= set(owners)
        if keepers and len(holders) <= 3 and len(keepers) >= len(holders) - 1:
            assert set(owners) == keepers
        assert Counter((s.part, s.source, s.destination) for s in plan.shares if s.block == block) == {
            (part, holder, owner): 1 for part, owner in enumerate(owners) for holder in holders if holder != owner
        }
        assert Counter((f.part, f.source, f.destination) for f in plan.fetches if f.block == block) == {
            (part, owner, rank): 1 for part, owner in enumerate(owners) for rank in following if rank != owner
        }


@given(rounds())
def test_act_block_and_ranks_name_a_message(pair: tuple[Partition, Partition]) -> None:
    plan = exchange(*pair)
    for messages in (plan.shares, plan.fetches):
        assert len({(m.block, m.source, m.destination) for m in messages}) == len(messages)
        assert all(m.source != m.destination for m in messages)
        assert list(messages) == sorted(messages, key=lambda m: (m.block, m.part))


@given(rounds())
def test_bytes_are_those_of_what_is_sent_and_no_plan_could_send_fewer(pair: tuple[Partition, Partition]) -> None:
    before, after = pair
    plan, sizes = exchange(before, after), blocks_sizes(before.blocks)
    sent, received = [0] * before.workers, [0] * before.workers
    for message in (*plan.shares, *plan.fetches):
        numbers = sizes[message.block] // 4
        parts = len(plan.owners[message.block])
        first, end = numbers * message.part // parts, numbers * (message.part + 1) // parts
        sent[message.source] += 4 * (end - first)
        received[message.destination] += 4 * (end - first)
    ranks = range(before.workers)
    assert [plan.bytes_sent(rank, sizes) for rank in ranks] == sent
    assert [plan.bytes_received(rank, sizes) for rank in ranks] == received
    assert plan.busiest(sizes) == max(*sent, *received)
    in_numbers = np.array(sizes) // 4
    assert [(4 * t).tolist() for t in traffic(holds(before), holds(after), in_numbers)] == [sent, received]
    least_of_all = sum(size * fewest(*both) for size, *both in zip(sizes, before.holders, after.holders, strict=True))
    assert sum(sent) == sum(received) >= least_of_all
    if max(map(len, before.holders)) <= 2:
        assert sum(sent) == least_of_all


@given(numbers, workers, least, st.lists(seeds, min_size=2, max_size=5))
def test_nothing_is_lost_over_several_rounds(n: int, s: int, m: int, deals: list[int]) -> None:
    partitions = [Rule((n,), s, m).deal(seed) for seed in deals]
    # Of each of a block's numbers, the ranks of the first round whose copies are in it.
    size = 12
    stores = [{block: [{rank} for _ in range(size)] for block in held} for rank, held in enumerate(partitions[0].held)]
    for before, after in pairwise(partitions):
        plan = exchange(before, after)
        copies = [
            (share, stores[share.source][share.block][plan.part(share.block, share.part, size)])
            for share in plan.shares
        ]
        for share, copy in copies:
            where = plan.part(share.block, share.part, size)
            mine = stores[share.destination][share.block]
            mine[where] = [one | other for one, other in zip(mine[where], copy, strict=True)]
        for fetch in plan.fetches:
            where = plan.part(fetch.block, fetch.part, size)
            arrived = stores[fetch.destination].setdefault(fetch.block, [set() for _ in range(size)])
            arrived[where] = stores[fetch.source][fetch.block][where]
        stores = [{block: store[block] for block in held} for store, held in zip(stores, after.held, strict=True)]
    # In every number of every copy of a block is what each of its first holders made of it, and nothing else.
    for store in stores:
        for block, makers in store.items():
            assert makers == [set(partitions[0].holders[block])] * size


def test_the_same_deal_again_moves_nothing_where_nothing_is_shared() -> None:
    partition = Rule((22,), 2).deal(1)
    plan = exchange(partition, partition)
    assert plan.shares == plan.fetches == ()
    assert plan.busiest(blocks_sizes(22)) == 0


def test_a_pair_that_keeps_a_block_sends_half_of_it_twice() -> None:
    plan = exchange(Partition(((0,), (0,), ()), 1), Partition(((0,), (0,), ()), 1))
    assert [plan.bytes_sent(rank, (1200,)) for rank in range(3)] == [1200, 1200, 0]
    assert plan.busiest((1200,)) == 1200


def test_a_holder_that_gives_a_block_away_gets_nothing_of_it() -> None:
    plan = exchange(Partition(((0,), (0,), ()), 1), Partition(((), (0,), (0,)), 1))
    assert plan.owners == ((1,),)
    assert [plan.bytes_received(rank, (1200,)) for rank in range(3)] == [0, 1200, 1200]


@given(st.integers(0, 10**6), st.integers(1, 64))
def test_parts_are_near_equal_and_cover_a_block(size: int, parts: int) -> None:
    edges = part_edges(size, parts)
    assert (edges[0], edges[-1], len(edges)) == (0, size, parts + 1)
    lengths = [end - first for first, end in pairwise(edges)]
    assert 0 <= max(lengths) - min(lengths) <= 1


def test_a_ring_all_reduce_sends_the_buffer_nearly_twice() -> None:
    assert [ring_bytes(1200, ranks) for ranks in (1, 2, 3, 4)] == [0, 1200, 1600, 1800]


def test_partitions_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="4 workers and 22 blocks before, 2 and 22 after"):
        exchange(Rule((22,), 4, 0).deal(1), Rule((22,), 2, 0).deal(1))
