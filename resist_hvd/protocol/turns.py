"""Turns in which messages leave, so that no rank's link carries two at a time in the same direction."""

from __future__ import annotations

from collections.abc import Sequence


def turns(messages: Sequence[tuple[int, int]]) -> list[int]:
    """Return a turn for each message; in a turn a rank sends at most one, and receives at most one.

    Messages are the edges of a bipartite multigraph of senders and receivers, and turns their colours. There are as few
    as the busiest rank sends or receives messages, whichever is more (König, 1916): an edge for which its ends have no
    colour in common takes one of the sender's, and the path of edges that alternate between both colours from its
    receiver on swaps them.

    Args:
        messages: source and destination of each.
    """
    found = [0] * len(messages)
    at: tuple[dict[tuple[int, int], int], ...] = ({}, {})  # by rank and turn, the message that it sends, and receives
    for number, message in enumerate(messages):
        free = [_first_free(rank, taken) for rank, taken in zip(message, at, strict=True)]
        if free[0] != free[1]:
            _swap(messages, found, at, message[1], free)
        found[number] = free[0]
        for rank, taken in zip(message, at, strict=True):
            taken[rank, free[0]] = number
    return found


def _first_free(rank: int, taken: dict[tuple[int, int], int]) -> int:
    turn = 0
    while (rank, turn) in taken:
        turn += 1
    return turn


def _swap(
    messages: Sequence[tuple[int, int]],
    found: list[int],
    at: tuple[dict[tuple[int, int], int], ...],
    receiver: int,
    pair: list[int],
) -> None:
    """Swap two turns along the path that begins with what a receiver gets in the first of them.

    It does not come by the sender in whose favour it is done: there it would end with the turn that this one has free.
    """
    path = []
    rank, side, turn = receiver, 1, pair[0]
    while (number := at[side].get((rank, turn))) is not None:
        path.append(number)
        side = 1 - side
        rank, turn = messages[number][side], pair[1] if turn == pair[0] else pair[0]
    for number in path:
        for end, taken in zip(messages[number], at, strict=True):
            del taken[end, found[number]]
    for number in path:
        found[number] = pair[1] if found[number] == pair[0] else pair[0]
        for end, taken in zip(messages[number], at, strict=True):
            taken[end, found[number]] = number
