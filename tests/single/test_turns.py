"""Messages leave in turns: as few as there can be, and none in which a link carries two in one direction."""

from collections import Counter

from hypothesis import example, given
from hypothesis import strategies as st

from resist_hvd.protocol.turns import turns

ALL_TO_ALL = [(source, destination) for source in range(5) for destination in range(5) if source != destination]


@example(ALL_TO_ALL)
@example([])
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=60))
def test_no_rank_sends_or_receives_two_messages_in_a_turn_and_turns_are_fewest(messages: list[tuple[int, int]]) -> None:
    found = turns(messages)
    for side in (0, 1):
        assert len({(message[side], turn) for message, turn in zip(messages, found, strict=True)}) == len(messages)
    busiest = max((most for side in (0, 1) for most in Counter(m[side] for m in messages).values()), default=0)
    assert max(found, default=-1) + 1 == busiest
