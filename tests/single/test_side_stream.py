"""Handing batches over from the stream in which they are made: what waits for what, on a stand-in for a GPU."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from resist_hvd.data.files.ahead import Ahead
from resist_hvd.data.side_stream import IN_USE, SideStream, made_beside

CPU = torch.device("cpu")


class Gpu:
    """Notes what is asked of `torch.cuda`, in order; each thread has a current stream of its own, as there."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._current = threading.local()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu = self
        recorded: Counter[str] = Counter()

        class Stream:
            def __init__(self, device: torch.device | None = None) -> None:
                self.device = device

            def wait_event(self, event: Any) -> None:
                gpu.log.append(f"{gpu.name(self)} waits for {event.label}")

        class Event:
            def __init__(self, blocking: bool = False) -> None:
                self.blocking = blocking

            def record(self, stream: Any) -> None:
                name = gpu.name(stream)
                self.label = f"{name}-{recorded[name]}"
                recorded[name] += 1
                gpu.log.append(f"{name} records {self.label}")

            def synchronize(self) -> None:
                assert self.blocking, "a thread that waits leaves its core to others"
                gpu.log.append(f"the process waits for {self.label}")

        self._default: Any = Stream()

        @contextmanager
        def stream(chosen: Any) -> Iterator[None]:
            assert self._current.device == chosen.device, "the stream is entered on its own device"
            before, self._current.stream = self.current(), chosen
            try:
                yield
            finally:
                self._current.stream = before

        def set_device(device: torch.device) -> None:
            self._current.device = device

        monkeypatch.setattr(torch.cuda, "set_device", set_device)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current())

    def current(self) -> Any:
        return getattr(self._current, "stream", self._default)

    def name(self, stream: Any) -> str:
        return "training" if stream is self._default else "side"


class Noted(torch.Tensor):
    """A tensor that notes in which streams it is used."""

    gpu: Gpu
    label: str

    def record_stream(self, stream: Any) -> None:  # type: ignore[override]
        self.gpu.log.append(f"{self.label} is used by {self.gpu.name(stream)}")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    gpu.install(monkeypatch)
    return gpu


def batches(gpu: Gpu, count: int) -> Iterator[tuple[Any, Any]]:
    for number in range(count):
        gpu.log.append(f"batch {number} made in {gpu.name(gpu.current())}")
        pair = []
        for kind in ("images", "labels"):
            tensor = torch.zeros(1).as_subclass(Noted)
            tensor.gpu, tensor.label = gpu, f"{kind} {number}"
            pair.append(tensor)
        yield pair[0], pair[1]


def expected(count: int) -> list[str]:
    return [
        line
        for number in range(count)
        for line in (
            f"batch {number} made in side",
            f"side records side-{number}",
            f"training records training-{number}",
            f"training waits for side-{number}",
            f"images {number} is used by training",
            f"labels {number} is used by training",
        )
    ]


def test_the_users_stream_waits_for_a_batch_and_its_memory_for_that_stream(gpu: Gpu) -> None:
    made = made_beside(batches(gpu, 3), SideStream(torch.device("cuda", 0)))
    assert len(list(made)) == 3
    assert gpu.log == expected(3)


def test_so_it_is_where_batches_are_made_in_a_thread(gpu: Gpu) -> None:
    ahead = Ahead(batches(gpu, 3), SideStream(torch.device("cuda", 0)))
    assert len(list(ahead)) == 3
    ahead.close()
    # The thread is ahead: the order of its lines among themselves, and of the user's, is what counts.
    for ours in (("batch", "side"), ("training", "images", "labels")):
        kept = [line for line in gpu.log if line.startswith(ours)]
        assert kept == [line for line in expected(3) if line.startswith(ours)]
    for number in range(3):
        assert gpu.log.index(f"side records side-{number}") < gpu.log.index(f"training waits for side-{number}")


def test_no_more_than_a_few_batches_are_in_use(gpu: Gpu) -> None:
    """A process that hurries on ahead of its GPU would fill its memory with batches."""
    made = made_beside(batches(gpu, 10), SideStream(torch.device("cuda", 0)))
    assert len(list(made)) == 10
    for number in range(10):
        waited = f"the process waits for training-{number}"
        if number + IN_USE + 1 >= 10:
            assert waited not in gpu.log
            continue
        # Before the batch after those that may be in use is handed over.
        assert gpu.log.index(waited) < gpu.log.index(f"side records side-{number + IN_USE + 1}")
        assert gpu.log.index(waited) > gpu.log.index(f"side records side-{number + IN_USE}")


def test_a_batch_that_nobody_takes_is_waited_for_by_nobody(gpu: Gpu) -> None:
    ahead = Ahead(batches(gpu, 2), SideStream(torch.device("cuda", 0)))
    ahead.close()
    assert not [line for line in gpu.log if line.startswith("training")]


def test_what_fails_before_the_first_batch_is_told(gpu: Gpu) -> None:
    class Broken(SideStream):
        def making(self) -> AbstractContextManager[object]:
            raise RuntimeError("no such device")

    ahead = Ahead(iter([1]), Broken(CPU))
    with pytest.raises(RuntimeError, match="no such device"):
        next(ahead)
    ahead.close()


def test_on_a_cpu_items_are_handed_over_as_they_are() -> None:
    items = [torch.zeros(1), (torch.zeros(2), torch.zeros(3)), 5]
    found = list(made_beside(iter(items), SideStream(CPU)))
    assert all(one is other for one, other in zip(found, items, strict=True))
