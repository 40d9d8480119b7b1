"""The deal of filters: which channels of each layer a worker of federated dropout has in a round.

Caldas, Konecny, McMahan and Talwalkar (2018): every worker gets a random set of its own, of the same size for all, so
that all train networks of one shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from resist_hvd.seeds import derive

Hand = dict[str, tuple[int, ...]]
"""The channels that a worker has, ascending, by the name of what they are channels of."""


class Channels(NamedTuple):
    """Channels of which every worker has as many: those of a residual stream, or of a convolution within a block.

    Attributes:
        name: of what they are channels of.
        whole: how many there are.
        kept: how many a worker has.
    """

    name: str
    whole: int
    kept: int


def kept_of(whole: int, share: float) -> int:
    """Return how many of so many channels are the share nearest to this one; one at least."""
    return max(1, round(share * whole))


def deal(channels: Sequence[Channels], seed: int, worker: int) -> Hand:
    """Deal a worker its channels; any rank can work out any worker's.

    They are those with the smallest of some random numbers, since Python promises the numbers of `random()` for ever,
    and not the choices of `sample`: ranks that dealt differently would wait for each other's numbers.

    Args:
        channels: all that are dealt.
        seed: the round's, the same on all ranks.
        worker: its rank.
    """
    hand = {}
    for name, whole, kept in channels:
        draw = Random(derive(seed, "filters", worker, name))
        numbers = [draw.random() for _ in range(whole)]
        hand[name] = tuple(sorted(sorted(range(whole), key=numbers.__getitem__)[:kept]))
    return hand
