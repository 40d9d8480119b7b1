"""The memory that training takes on a GPU, by an allocator that is made up: other tests see what CPUs take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from resist_hvd.training.memory import TrainingMemory

GPU = torch.device("cuda", 1)


class Allocator:
    """Bytes in use and bytes kept, as PyTorch counts them; what is let go is kept until the cache is emptied."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used = self.most_used = self.kept = self.most_kept = 0
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.of(device).most_used)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: self.of(device).most_kept)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: self.of(device).restart())
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty)

    def of(self, device: torch.device) -> Allocator:
        assert device == GPU
        return self

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        self.used += size
        self.kept = max(self.kept, self.used)
        self.most_used, self.most_kept = max(self.most_used, self.used), max(self.most_kept, self.kept)
        yield
        self.used -= size

    def empty(self) -> None:
        self.kept = self.used

    def restart(self) -> None:
        self.most_used, self.most_kept = self.used, self.kept


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    return Allocator(monkeypatch)


@pytest.mark.parametrize("graphs", [True, False])
def test_what_is_done_aside_is_left_out(graphs: bool, allocator: Allocator) -> None:
    memory = TrainingMemory(GPU, graphs=graphs)
    with allocator.taken(100):
        with memory.aside(), allocator.taken(5000):
            pass
        assert memory.peak == 100
        with allocator.taken(40):
            pass
        with memory.aside(), allocator.taken(3000):
            pass
    assert memory.peak == 140
    with allocator.taken(150):
        pass
    assert memory.peak == 150


def test_the_most_before_is_not_forgotten_and_what_stays_counts(allocator: Allocator) -> None:
    memory = TrainingMemory(GPU)
    with allocator.taken(700):
        pass
    with memory.aside():
        stays = allocator.taken(900)
        stays.__enter__()
    assert memory.peak == 900
    stays.__exit__(None, None, None)
    with memory.aside():
        pass
    assert memory.peak == 900


def test_a_gpu_that_fails_aside_is_asked_nothing_more(allocator: Allocator, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = TrainingMemory(GPU, graphs=True)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("asked"))
    with pytest.raises(RuntimeError, match="illegal memory access"), memory.aside():
        raise RuntimeError("illegal memory access")
