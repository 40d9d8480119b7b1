"""Where a worker's seconds go: summed by phase all the time, and one by one while a trace is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple


class Span(NamedTuple):
    """Something that a worker did, by its own clock (`perf_counter`), in seconds."""

    name: str
    track: str
    began: float
    ended: float


class Stopwatch:
    """Seconds by phase.

    Attributes:
        seconds: of each phase, since the start.
        spans: what was done since they began to be kept, None while they are not.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.spans: list[Span] | None = None

    @contextmanager
    def measure(self, phase: str, name: str | None = None) -> Iterator[None]:
        """Count the seconds of what is done within as a phase's; a trace shows it by its name, or the phase's."""
        began = perf_counter()
        try:
            yield
        finally:
            ended = perf_counter()
            self.seconds[phase] += ended - began
            self.keep(name or phase, "worker", began, ended)

    def keep(self, name: str, track: str, began: float, ended: float) -> None:
        """Keep a span, if spans are kept; it counts towards no phase."""
        if self.spans is not None:
            self.spans.append(Span(name, track, began, ended))
