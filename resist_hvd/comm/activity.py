"""A rank's work, for those who watch it and may end it: its activity, and whether it was told to stop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Activity:
    """Present work of one rank. The main thread writes it, at no cost to speak of; other threads read it.

    The thread that advances messages beside steps notes progress as well.

    Attributes:
        phase: in words: "round 7, local training".
        detail: what it does within the phase, if that is worth saying: "waiting for a batch".
        waits: how many calls it is in that end only once other ranks have done their part.
        wait: the number of the last such call: the same on ranks that wait in the same one.
        long_limit: whether the watchdog's long limit holds, not the rounds': none is done, or a network is compiled.
        progressed: when it last got on, on the monotonic clock, in seconds.
        rounds: how long the last rounds took, in seconds.
    """

    phase: str = "setting up"
    detail: str = ""
    waits: int = 0
    wait: int = 0
    long_limit: bool = True
    progressed: float = field(default_factory=time.monotonic)
    rounds: deque[float] = field(default_factory=lambda: deque(maxlen=25))
    _long_steps: int = 0

    @property
    def words(self) -> str:
        """Phase and detail."""
        return f"{self.phase}, {self.detail}" if self.detail else self.phase

    @property
    def has_long_limit(self) -> bool:
        """True where its present work may take longer than a round may: see `long_limit` and `long_limit_for`."""
        return self.long_limit or self._long_steps > 0

    def begin(self, phase: str) -> None:
        """Go on to another phase."""
        self.phase, self.detail = phase, ""
        self.progress()

    def progress(self) -> None:
        """Note that this rank gets on."""
        self.progressed = time.monotonic()

    def round_took(self, seconds: float) -> None:
        """Note that a round is done."""
        self.rounds.append(seconds)
        self.long_limit = False
        self.progress()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark a wait for other ranks: if they do not come, it is not this one's fault."""
        self.waits += 1
        self.wait += 1
        self.progress()
        try:
            yield
        finally:
            self.waits -= 1
            self.progress()

    @contextmanager
    def long_limit_for(self, detail: str) -> Iterator[None]:
        """Give a step half an hour, whatever rounds take: it reads or writes files, and a file server may be slow.

        Args:
            detail: the step, in words: "writing the checkpoint".
        """
        before, self.detail = self.detail, detail
        self._long_steps += 1
        self.progress()
        try:
            yield
        finally:
            self._long_steps -= 1
            self.detail = before
            self.progress()


@dataclass
class StopRequest:
    """Request that the run of this rank stops.

    Attributes:
        signal: the signal by which this rank was told to stop, 0 if it was not.
        heeded: whether the run asks for it soon, and stops by itself.
        resumable: whether a run that ends now can go on with --resume.
        complete: whether the run is done, and ends by itself: it need not be stopped for a scheduler's limit.
    """

    signal: int = 0
    heeded: bool = False
    resumable: bool = False
    complete: bool = False

    @contextmanager
    def heeding(self) -> Iterator[None]:
        """Have signals leave the end to a run that asks after each round whether any rank was told to stop."""
        self.heeded = True
        try:
            yield
        finally:
            self.heeded = False
