"""What ranks did, on one clock and in Chrome's format."""

import pytest

from resist_hvd.stopwatch import Span, Stopwatch
from resist_hvd.training.trace import chrome_trace, on_one_clock


def test_a_stopwatch_counts_always_and_keeps_spans_when_asked() -> None:
    watch = Stopwatch()
    with watch.measure("data"):
        pass
    counted = watch.seconds["data"]
    assert counted > 0
    watch.spans = []
    with watch.measure("trunk", "wait for trunk"):
        watch.keep("average trunk", "averages", 1.0, 2.0)
    assert watch.seconds["data"] == counted
    beside, within = watch.spans
    assert beside == Span("average trunk", "averages", 1.0, 2.0)
    assert (within.name, within.track) == ("wait for trunk", "worker")
    assert watch.seconds["trunk"] == pytest.approx(within.ended - within.began)


def test_a_clock_that_is_ahead_and_runs_faster_is_put_right() -> None:
    # At rank 0's 100 s this clock is 7 s ahead, at its 200 s 8 s: one second of it is 1/101 shorter.
    spans = [Span("begin", "worker", 107.0, 157.5), Span("end", "worker", 157.5, 208.0)]
    first, second = on_one_clock(spans, (100.0, 7.0), (200.0, 8.0))
    assert (first.began, second.ended) == pytest.approx((100.0, 200.0), abs=0.02)
    assert first.ended == second.began == pytest.approx(150.0, abs=0.02)


def test_a_trace_has_a_process_a_rank_and_begins_at_zero() -> None:
    everyone = [
        ("alpha", [Span("compute", "worker", 5.0, 5.5), Span("average trunk", "averages", 5.1, 5.4)]),
        ("beta", [Span("data", "worker", 4.0, 4.25)]),
    ]
    events = chrome_trace(everyone)["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {0: "rank 0 on alpha", 1: "rank 1 on beta"}
    compute, data = (next(event for event in events if event["name"] == name) for name in ("compute", "data"))
    assert (data["ph"], data["ts"], data["dur"]) == ("X", 0.0, 250_000.0)
    assert (compute["ts"], compute["dur"]) == (1e6, 500_000.0)
    begin, end = (event for event in events if event["name"] == "average trunk")
    assert (begin["ph"], end["ph"], begin["cat"]) == ("b", "e", "averages")
    assert begin["id"] == end["id"]
    assert end["ts"] - begin["ts"] == pytest.approx(300_000)
