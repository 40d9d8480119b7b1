"""A worker's seconds: summed by phase all the time, and one by one while a trace is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple, Protocol

MOST_UNREAD = 10_000
"""Phases on a GPU that are kept, to be summed when they are asked for."""


class Span(NamedTuple):
    """Something that a worker did, by its own clock (`perf_counter`), in seconds."""

    name: str
    track: str
    began: float
    ended: float


class Event(Protocol):
    """A point in what a device was given to do, as `torch.cuda.Event` is."""

    def synchronize(self) -> None:
        """Wait until the device has come to it."""

    def elapsed_time(self, end_event: Any, /) -> float:
        """Return the milliseconds between two points that the device has come to."""


class Stopwatch:
    """Seconds by phase.

    A GPU works on what it was given while this process is already elsewhere: seconds by the process's clock are then
    not the device's. So on a GPU a phase is what the device takes from the point at which it began to the point at
    which it ended. Of a phase in which this process waits and gives it nothing, that is how long the device stood still
    for it: nothing, while it still had work.

    Args:
        record: returns the device's present point, of all it was given so far; None where this process computes itself.

    Attributes:
        spans: what was done since they began to be kept, None while they are not; by this process's clock.
    """

    def __init__(self, record: Callable[[], Event] | None = None) -> None:
        self.spans: list[Span] | None = None
        self._record = record
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._unread: list[tuple[str, Event, Event]] = []

    @property
    def seconds(self) -> defaultdict[str, float]:
        """Seconds of each phase, since the start; a GPU is waited for until it has come to the end of the last one."""
        self._read(len(self._unread))
        return self._seconds

    def _read(self, count: int) -> None:
        """Sum the oldest phases of those that are not summed yet."""
        read, self._unread = self._unread[:count], self._unread[count:]
        for phase, began, ended in read:
            ended.synchronize()
            self._seconds[phase] += began.elapsed_time(ended) / 1e3

    @contextmanager
    def measure(self, phase: str, name: str | None = None) -> Iterator[None]:
        """Count the seconds of what is done within as a phase's; a trace shows it by its name, or the phase's."""
        record = self._record
        began = perf_counter()
        reached = record() if record else None
        try:
            yield
        finally:
            ended = perf_counter()
            if reached is None:
                self._seconds[phase] += ended - began
            self.keep(name or phase, "worker", began, ended)
        if record and reached:
            self._unread.append((phase, reached, record()))
            if len(self._unread) >= MOST_UNREAD:
                self._read(MOST_UNREAD // 2)  # the device has passed these long ago

    def beside(self, phase: str, name: str, began: float, ended: float) -> None:
        """Count the seconds of something that went on beside what this process did; a trace shows it there."""
        self._seconds[phase] += ended - began
        self.keep(name, "averages", began, ended)

    def keep(self, name: str, track: str, began: float, ended: float) -> None:
        """Keep a span, if spans are kept; it counts towards no phase."""
        if self.spans is not None:
            self.spans.append(Span(name, track, began, ended))
