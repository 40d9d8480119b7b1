"""The deal: every property that the protocol relies on, over all small numbers of blocks, workers and depths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resist_hvd.protocol.rule import MOST_GROUPS, Rule, depth
from resist_hvd.seeds import derive

numbers = st.integers(1, 24)
workers = st.integers(1, 9)
least = st.integers(0, 26)
seeds = st.integers(0, 2**62)


@given(numbers, workers, least, seeds)
def test_every_block_is_held_and_every_worker_holds_as_many_different_ones(n: int, s: int, m: int, seed: int) -> None:
    partition = Rule((n,), s, m).deal(seed)
    k = max(-(-n // s), min(m, n))
    assert depth(n, s, m) == k
    assert {block for held in partition.held for block in held} == set(range(n))
    for held in partition.held:
        assert len(held) == k
        assert list(held) == sorted(set(held))


@given(numbers, workers, least, seeds)
def test_copies_differ_by_one_at_most_and_holders_are_neighbours(n: int, s: int, m: int, seed: int) -> None:
    partition = Rule((n,), s, m).deal(seed)
    copies, extra = divmod(s * depth(n, s, m), n)
    counts = [len(holders) for holders in partition.holders]
    assert sorted(counts) == [copies] * (n - extra) + [copies + 1] * extra
    groups = Rule((n,), s, m).groups
    for holders in partition.holders:
        runs = [{(start + step) % s for step in range(len(holders))} for start in range(s)]
        assert set(holders) in runs
        assert len(holders) == 1 or holders in groups


@given(numbers, workers, seeds)
def test_where_blocks_divide_it_is_the_papers_round_robin_deal(k: int, s: int, seed: int) -> None:
    partition = Rule((k * s,), s, 0).deal(seed)
    permutation = sorted(range(k * s), key=lambda block: derive(seed, "deal", block))
    assert partition.held == tuple(tuple(sorted(permutation[worker::s])) for worker in range(s))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=4), workers, least, seeds)
def test_decks_are_dealt_one_by_one(decks: list[int], s: int, m: int, seed: int) -> None:
    partition = Rule(decks, s, m).deal(seed)
    assert partition == Rule(decks, s, m).deal(seed)
    first = 0
    for blocks in decks:
        for held in partition.held:
            assert sum(first <= block < first + blocks for block in held) == depth(blocks, s, m)
        first += blocks
    assert partition.blocks == first


@given(st.lists(numbers, min_size=1, max_size=3), workers, least)
def test_all_groups_of_holders_are_known_beforehand_and_are_few(decks: list[int], s: int, m: int) -> None:
    groups = Rule(decks, s, m).groups
    dealt = {holders for seed in range(5) for holders in Rule(decks, s, m).deal(seed).holders}
    assert {holders for holders in dealt if len(holders) > 1} <= set(groups)
    assert len(groups) <= max(MOST_GROUPS, 2 * s * len(decks))
    assert all(1 < len(group) <= s and list(group) == sorted(set(group)) for group in groups)
    assert list(groups) == sorted(set(groups))


@given(numbers, workers)
def test_no_group_is_made_where_no_block_is_shared(k: int, s: int) -> None:
    assert Rule((k * s,), s, 0).groups == ()


def test_other_seeds_deal_otherwise() -> None:
    assert len({Rule((22,), 4, 5).deal(seed).held for seed in range(50)}) == 50


@given(numbers, workers)
def test_replicated_blocks_are_held_by_all(n: int, s: int) -> None:
    assert Rule((n,), s).replicated().holders == (tuple(range(s)),) * n


def test_a_deal_is_the_same_for_ever() -> None:
    # Another version of Python, or of this program, that dealt otherwise could not go on with a run as it was.
    assert Rule((8,), 4, 3).deal(4).held == ((3, 4, 5), (2, 3, 5), (0, 1, 7), (0, 1, 6))
    assert Rule((2, 3), 2, 0).deal(1).held == ((0, 2, 4), (1, 2, 3))


@given(st.lists(numbers, min_size=1, max_size=3), workers, least, seeds)
def test_a_deal_that_was_written_down_is_read_again(decks: list[int], s: int, m: int, seed: int) -> None:
    partition = Rule(decks, s, m).deal(seed)
    assert Rule(decks, s, m).recorded([list(own) for own in partition.held]) == partition


@pytest.mark.parametrize(
    "held",
    [
        pytest.param([[0, 1], [2, 3], [4, 5]], id="more-workers"),
        pytest.param([[0, 1, 2], [2, 3]], id="deeper"),
        pytest.param([[0, 1], [0, 1]], id="blocks-that-nobody-holds"),
        pytest.param([[1, 0], [2, 3]], id="out-of-order"),
        pytest.param([[0, 1], [2, 4]], id="a-block-too-many"),
        pytest.param([[0, True], [2, 3]], id="no-number"),
        pytest.param([[0, -1], [2, 3]], id="below-zero"),
    ],
)
def test_what_the_rule_cannot_deal_is_not_read(held: list[list[int]]) -> None:
    assert Rule((4,), 2, 0).recorded([[0, 3], [1, 2]]) is not None
    assert Rule((4,), 2, 0).recorded(held) is None


@pytest.mark.parametrize(("workers", "any_holders", "groups"), [(4, True, 6), (8, True, 84), (16, False, 32)])
def test_any_ranks_may_share_a_block_where_such_groups_are_few(workers: int, any_holders: bool, groups: int) -> None:
    rule = Rule((22,), workers, {4: 9, 8: 6, 16: 5}[workers])
    assert rule.any_holders == any_holders
    assert len(rule.groups) == groups


def test_holders_that_have_no_communicator_are_not_read() -> None:
    rule = Rule((22,), 16, 5)
    held = list(rule.deal(1).held)
    assert rule.recorded(held) is not None
    held[0], held[5] = held[5], held[0]
    assert rule.recorded(held) is None
