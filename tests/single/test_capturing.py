"""What surrounds the recording of a CUDA graph: its stream, and the collector of garbage, which is not to come in."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from resist_hvd.training.capturing import capture_stream, capturing

GPU = torch.device("cuda", 0)


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _collecting() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_no_garbage_is_collected_in_a_capture(collects: bool, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []

    @contextmanager
    def graph(recorded: Any, **given: Any) -> Iterator[None]:
        begun.append({"graph": recorded, "garbage": garbage(), "collects": gc.isenabled(), **given})
        yield
        if fails:
            raise RuntimeError("CUDA error: operation not permitted")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    recorded: Any = object()
    stream: Any = object()
    (gc.enable if collects else gc.disable)()
    garbage = weakref.ref(Cycle())
    try:
        with capturing(recorded, stream):
            assert not gc.isenabled()
    except RuntimeError:
        assert fails
    assert gc.isenabled() == collects
    assert begun == [
        {
            "graph": recorded,
            "garbage": None,
            "collects": False,
            "stream": stream,
            "capture_error_mode": "thread_local",
        }
    ]


def test_a_capture_takes_no_stream_of_those_that_loaders_have(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority=0: made.append((device, priority)))
    capture_stream(GPU)
    assert made == [(GPU, -1)]
