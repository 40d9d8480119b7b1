"""The time that is left of a run, by the pace of its recent rounds and by what has come between rounds so far."""

from __future__ import annotations

from collections import deque
from time import perf_counter

RECENT = 20
"""So many of the last rounds say how long those to come will take."""


class Pace:
    """The seconds that rounds take, counted from the second round of this start.

    The first makes connections, plans and caches, and tells nothing of the others. Evaluations and checkpoints are
    spread over all rounds since: what came between rounds so far will come between those that are left.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._since: float | None = None
        self._rounds = 0
        self._seconds = 0.0
        self._between = 0.0

    def round_done(self, seconds: float, now: float | None = None) -> None:
        """Note that a round is over.

        Args:
            seconds: that it took.
            now: the time, on a clock in seconds; `perf_counter` by default.
        """
        now = perf_counter() if now is None else now
        if self._since is None:
            self._since = now
            return
        self._recent.append(seconds)
        self._rounds += 1
        self._seconds += seconds
        self._between = max(0.0, now - self._since - self._seconds) / self._rounds

    def left(self, rounds: int) -> float | None:
        """Return the seconds that so many rounds will take; None while nothing is known."""
        if not self._recent:
            return None
        return rounds * (sum(self._recent) / len(self._recent) + self._between)
