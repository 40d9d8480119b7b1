"""`--overlap auto`: T, the steps beside a synchronisation, by the seconds that were measured and a table of points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

from resist_hvd.records import RoundRecord

LOST: Mapping[tuple[int, int], float] = {
    (10, 1): 1.5,
    (10, 2): 2.0,
    (10, 5): 8.7,
    (20, 1): 0.4,
    (20, 2): 1.9,
    (50, 1): -0.1,
    (50, 2): -0.1,
}
"""Points of accuracy that T of l steps beside the synchronisation cost, by (l, T).

Source: ResIST on 4 workers by the recipe cifar10-tiny, all of CIFAR-10, against the same runs with T = 0, means of
three seeds (docs/accuracy.md); T = 5 of 10 is one seed of an earlier version."""

DEAR = 0.3
"""Points: what costs more is never taken."""

WORTHWHILE = 0.02
"""Share of a round: to hide less is worth no point at all."""

SKIPPED = 1
"""Rounds that are not measured: connections are made in the first."""

MEASURED = 3
"""Rounds that are measured after them, without steps beside their synchronisations."""


class Choice(NamedTuple):
    """T, and why it is that."""

    overlap: int
    why: str

    @property
    def sentence(self) -> str:
        """The choice in words."""
        return f"--overlap auto: T = {self.overlap} from now on; {self.why}"


def is_free(iterations: int, overlap: int, lost: Mapping[tuple[int, int], float]) -> bool:
    """Return whether T of l steps are known to cost next to nothing.

    They are where no fewer steps beside the synchronisation cost next to nothing in rounds that were no longer, unless
    no more of them did cost something in rounds that were no shorter. What nobody has measured is not free.

    Args:
        iterations: l.
        overlap: T.
        lost: points of accuracy by (l, T).
    """
    free = [(length, steps) for (length, steps), points in lost.items() if points <= DEAR]
    dear = [(length, steps) for (length, steps), points in lost.items() if points > DEAR]
    vouching = any(length <= iterations and steps >= overlap for length, steps in free)
    return vouching and not any(length >= iterations and steps <= overlap for length, steps in dear)


def choose(iterations: int, step: float, sync: float, lost: Mapping[tuple[int, int], float]) -> Choice:
    """Return the least T whose steps last as long as a synchronisation; where that is not free, the most that is.

    Args:
        iterations: l.
        step: seconds of a local iteration.
        sync: seconds of a synchronisation that nothing hides.
        lost: points of accuracy by (l, T).
    """
    whole = iterations * step + sync
    if sync <= WORTHWHILE * whole:
        return Choice(0, f"a synchronisation takes {sync:.3g} s of a round's {whole:.3g}: little to hide")
    needed = min(max(1, math.ceil(sync / step)), iterations - 1) if step > 0 else iterations - 1
    free = [overlap for overlap in range(1, needed + 1) if is_free(iterations, overlap, lost)]
    chosen = max(free, default=0)
    found = f"a synchronisation takes {sync:.3g} s, and a step {step:.3g}"
    if chosen == needed or iterations == 1:
        return Choice(chosen, found)
    points = lost.get((iterations, chosen + 1))
    known = f"costs {points:g} points" if points is not None else f"is not known to cost less than {DEAR:g} points"
    return Choice(chosen, f"{found}; to hide more of it behind {chosen + 1} of {iterations} steps {known}")


class Chooser:
    """Measures rounds without overlap, and then chooses T; on all ranks alike, since records are.

    Of each round the rank counts that trained longest: it came last, and waited for nobody but the network.

    Args:
        iterations: l.
    """

    def __init__(self, iterations: int) -> None:
        self._iterations = iterations
        self._measured: list[tuple[float, float]] = []
        self._seen = 0

    def take(self, record: RoundRecord) -> Choice | None:
        """Take note of a round; return the choice once enough have been measured."""
        assert record.ranks is not None
        self._seen += 1
        if self._seen <= SKIPPED:
            return None
        ranks = zip(record.ranks.seconds_compute, record.ranks.seconds_data, record.ranks.seconds_sync, strict=True)
        trained, sync = max((compute + data, sync) for compute, data, sync in ranks)
        self._measured.append((trained / record.iterations, sync))
        if len(self._measured) < MEASURED:
            return None
        step, sync = (median(figures) for figures in zip(*self._measured, strict=True))
        return choose(self._iterations, step, sync, LOST)
