"""Turns in which messages leave, so that no rank's link carries two at a time in the same direction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Ends = tuple[int, int]
"""A message's source and destination."""


def turns(messages: Sequence[Ends]) -> list[int]:
    """Return a turn for each message; in a turn a rank sends at most one, and receives at most one.

    Messages are the edges of a bipartite multigraph of senders and receivers, and turns their colours. There are as few
    as the busiest rank sends or receives messages, whichever is more (König, 1916): an edge for which its ends have no
    colour in common takes one of the sender's, and the path of edges that alternate between both colours from its
    receiver on swaps them. Where each rank sends one to every other, in turn t it sends to that which is t ranks on.

    Args:
        messages: source and destination of each.
    """
    ranks = {source for source, _ in messages}
    every = {(source, destination) for source in ranks for destination in ranks if source != destination}
    if ranks == set(range(len(ranks))) and len(messages) == len(every) and every == set(messages):
        return [(destination - source) % len(ranks) - 1 for source, destination in messages]
    timetable = _Timetable(messages)
    for number in range(len(messages)):
        timetable.add(number)
    return timetable.turns


class _Timetable:
    """Turns of the messages so far.

    Attributes:
        turns: of each message.
    """

    def __init__(self, messages: Sequence[Ends]) -> None:
        self._messages = messages
        self.turns = [0] * len(messages)
        counts = (Counter(ends[side] for ends in messages) for side in (0, 1))
        self._every = (1 << max((most for count in counts for most in count.values()), default=0)) - 1
        # By rank and turn the message that it sends, and receives; and by rank a bit for each turn that is not free.
        self._at: tuple[dict[Ends, int], ...] = ({}, {})
        self._taken: tuple[Counter[int], ...] = (Counter(), Counter())

    def add(self, number: int) -> None:
        """Give a message a turn."""
        sent, received = (taken[end] for end, taken in zip(self._messages[number], self._taken, strict=True))
        if ~(sent | received) & self._every:
            self._put(number, _lowest(~(sent | received)))
            return
        pair = _lowest(~sent), _lowest(~received)
        self._swap(self._messages[number][1], pair)
        self._put(number, pair[0])

    def _put(self, number: int, turn: int) -> None:
        self.turns[number] = turn
        for end, at, taken in zip(self._messages[number], self._at, self._taken, strict=True):
            at[end, turn] = number
            taken[end] |= 1 << turn

    def _take_out(self, number: int) -> None:
        turn = self.turns[number]
        for end, at, taken in zip(self._messages[number], self._at, self._taken, strict=True):
            del at[end, turn]
            taken[end] &= ~(1 << turn)

    def _swap(self, receiver: int, pair: tuple[int, int]) -> None:
        """Swap two turns along the path that begins with what a receiver gets in the first of them.

        It does not come by the sender in whose favour it is done: there it would end with the turn that this one has
        free.
        """
        path = []
        rank, side, turn = receiver, 1, pair[0]
        while (number := self._at[side].get((rank, turn))) is not None:
            path.append(number)
            side = 1 - side
            rank, turn = self._messages[number][side], sum(pair) - turn
        for number in path:
            self._take_out(number)
        for number in path:
            self._put(number, sum(pair) - self.turns[number])


def _lowest(bits: int) -> int:
    """Return the number of the lowest bit that is set."""
    return (bits & -bits).bit_length() - 1
