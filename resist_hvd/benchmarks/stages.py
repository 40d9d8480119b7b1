"""Cuts of a network's row of parts into stages of a pipeline, as even as can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from operator import add
from typing import NamedTuple

from resist_hvd.errors import UserError


class Load(NamedTuple):
    """A part of a network, as a cut sees it.

    Attributes:
        seconds: of its forward and backward pass.
        output: numbers that it hands on of one image.
        parameters: how many it has.
    """

    seconds: float
    output: int
    parameters: int


def best_cut(loads: Sequence[Load], stages: int) -> tuple[int, ...]:
    """Return how many consecutive parts each stage has, so that the slowest stage takes the least.

    Of all such cuts it is one at which the fewest numbers pass from stage to stage. Each stage has a parameter at
    least, or it would have nothing to train.

    Raises:
        UserError: too few parts have parameters.
    """
    trained = sum(load.parameters > 0 for load in loads)
    if trained < stages:
        raise UserError(
            f"gpipe has a stage on each of {stages} ranks, but {trained} parts of the network have parameters",
            mend="Start fewer ranks, give a deeper network, or leave gpipe out of --rows.",
        )

    @cache
    def seconds(first: int, end: int) -> float:
        stage = loads[first:end]
        return sum(load.seconds for load in stage) if any(load.parameters for load in stage) else math.inf

    least, _ = _least(len(loads), stages, seconds, max)

    def passed_on(first: int, end: int) -> float:
        return loads[end - 1].output if seconds(first, end) <= least else math.inf

    _, edges = _least(len(loads), stages, passed_on, add)
    return tuple(end - first for first, end in pairwise(edges))


def _least(
    parts: int, stages: int, cost: Callable[[int, int], float], join: Callable[[float, float], float]
) -> tuple[float, tuple[int, ...]]:
    """Return the least cost of all cuts, stages' costs being joined to one, and the edges of such a cut."""
    # For each end: the best cut of the parts before it into as many stages as there have been.
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, (0,))}
    for _ in range(stages):
        best = {
            end: min(
                (join(before, cost(first, end)), (*edges, end))
                for first, (before, edges) in best.items()
                if first < end
            )
            for end in range(min(best) + 1, parts + 1)
        }
    return best[parts]
