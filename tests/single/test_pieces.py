"""Pieces of a buffer that all workers have: what covers it, and turns in which no link carries two messages."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resist_hvd.protocol.exchange import Fetch, Share
from resist_hvd.protocol.pieces import Pieces

layouts = st.builds(Pieces, st.integers(0, 300), st.integers(2, 9), st.integers(1, 9))


def numbers(groups: slice) -> range:
    return range(groups.start, groups.stop)


@given(layouts)
def test_parts_cover_the_buffer_once(pieces: Pieces) -> None:
    parts = [numbers(pieces.part(piece, owner)) for piece in range(pieces.count) for owner in range(pieces.workers)]
    assert [group for part in parts for group in part] == list(range(pieces.groups))
    assert max(map(len, parts)) - min(map(len, parts)) <= 2
    assert [sum(map(len, parts[owner :: pieces.workers])) for owner in range(pieces.workers)] == [
        pieces.owned(owner) for owner in range(pieces.workers)
    ]


@given(layouts)
def test_copies_lie_side_by_side_with_their_owner(pieces: Pieces) -> None:
    for owner in range(pieces.workers):
        places: list[int] = []
        for source in range(pieces.workers):
            for piece in range(pieces.count):
                if source != owner:
                    copy = numbers(pieces.copy(piece, source, owner))
                    assert len(copy) == len(numbers(pieces.part(piece, owner)))
                    places += copy
        assert places == list(range(pieces.owned(owner) * (pieces.workers - 1)))


@given(layouts)
def test_in_a_turn_each_rank_sends_one_message_and_receives_one(pieces: Pieces) -> None:
    ends = Counter(
        end for turn, message in pieces.in_turns for end in ((turn, message.source, 0), (turn, message.destination, 1))
    )
    assert set(ends.values()) == {1}
    found = [turn for turn, _ in pieces.in_turns]
    assert sorted(set(found)) == list(range(2 * pieces.count * (pieces.workers - 1)))
    assert found == sorted(found)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_averages_leave_after_the_copies_of_the_next_piece(count: int) -> None:
    pieces = Pieces(100, 4, count)
    kinds = [(type(message), message.block) for _, message in pieces.in_turns]
    stages = list(dict.fromkeys(kinds))
    expected = [(Share, 0)]
    for piece in range(1, count):
        expected += [(Share, piece), (Fetch, piece - 1)]
    assert stages == [*expected, (Fetch, count - 1)]
    assert kinds == [stage for stage in stages for _ in range(12)]
