"""A trace of a run's first rounds: what every rank did when, on one clock, for Perfetto or chrome://tracing.

The file is JSON in Chrome's trace event format: a process a rank, with complete events for what the worker did one
after another, and asynchronous ones for averages that go on beside it. HOROVOD_TIMELINE, Horovod's own trace, shows
what happens within such an average.
"""

from __future__ import annotations

import json
from time import perf_counter
from typing import Any

from resist_hvd.comm.probe import clock_offsets
from resist_hvd.stopwatch import Span
from resist_hvd.training.disk import disk_errors, write_whole
from resist_hvd.training.run import Run

TRACED_ROUNDS = 5


class Trace:
    """Keeps the spans of a run's first rounds, and has rank 0 write them down.

    Clocks are compared before and after, so that one that runs faster is put right.

    Args:
        run: the run; all its ranks make this together.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._rounds = 0
        self._before = self._compare()
        run.world.stopwatch.spans = []

    def _compare(self) -> tuple[float, float]:
        """Return rank 0's time, and by how much this rank's clock is ahead of it."""
        world = self.run.world
        ahead = clock_offsets(world)[world.rank]
        return perf_counter() - ahead, ahead

    def round_done(self) -> None:
        """Note that a round is over; after the last of those to be traced the file is written."""
        self._rounds += 1
        if self._rounds == TRACED_ROUNDS:
            self.write()

    def write(self) -> None:
        """Write `trace.json` into the run's folder, unless it was before; all ranks must call it together.

        Raises:
            UserError: on every rank, where it cannot be written.
        """
        world = self.run.world
        if world.stopwatch.spans is None:
            return
        spans, world.stopwatch.spans = world.stopwatch.spans, None
        mine = on_one_clock(spans, self._before, self._compare())
        everyone = world.gather_objects((world.host, mine))
        with world.agree("writing the trace"), disk_errors(self.run.folder / "trace.json"):
            if world.is_first:
                write_whole(self.run.folder / "trace.json", json.dumps(chrome_trace(everyone)) + "\n")


def on_one_clock(spans: list[Span], before: tuple[float, float], after: tuple[float, float]) -> list[Span]:
    """Return spans by rank 0's clock.

    Args:
        spans: by this rank's clock.
        before: rank 0's time, and by how much this rank's clock was ahead of it then.
        after: the same, later.
    """
    (first, ahead), (last, later) = before, after
    drift = (later - ahead) / (last - first) if last > first else 0.0

    def there(here: float) -> float:
        return here - ahead - drift * (here - ahead - first)

    return [Span(span.name, span.track, there(span.began), there(span.ended)) for span in spans]


def chrome_trace(everyone: list[tuple[str, list[Span]]]) -> dict[str, Any]:
    """Return a trace in Chrome's format.

    Args:
        everyone: for each rank its host, and its spans on one clock.
    """
    start = min((span.began for _, spans in everyone for span in spans), default=0.0)
    events: list[dict[str, Any]] = []
    number = 0
    for rank, (host, spans) in enumerate(everyone):
        events.append(event("M", rank, "process_name", args={"name": f"rank {rank} on {host}"}))
        events.append(event("M", rank, "process_sort_index", args={"sort_index": rank}))
        events.append(event("M", rank, "thread_name", args={"name": "worker"}))
        for span in spans:
            times = [round(1e6 * (moment - start), 3) for moment in (span.began, span.ended)]
            if span.track == "worker":
                events.append(event("X", rank, span.name, ts=times[0], dur=round(times[1] - times[0], 3)))
            else:
                number += 1
                for phase, moment in zip("be", times, strict=True):
                    events.append(event(phase, rank, span.name, ts=moment, cat=span.track, id=number))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def event(phase: str, rank: int, name: str, **fields: Any) -> dict[str, Any]:
    """Return an event in Chrome's format."""
    return {"ph": phase, "pid": rank, "tid": 0, "name": name, **fields}


def trace_of(run: Run) -> Trace | None:
    """Return what keeps a run's trace, if its settings ask for one."""
    return Trace(run) if run.settings.trace else None
