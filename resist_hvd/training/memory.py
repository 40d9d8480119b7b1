"""The most memory that a worker's training takes."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class TrainingMemory:
    """The most memory since the start: on a GPU PyTorch's while it trains, else the process's while it does anything.

    On a GPU what is done aside is left out. There cuDNN tries algorithms out, and the space that it lends to each of
    them, whatever the GPU has, says nothing of what training takes.

    Args:
        device: what the worker computes on.
        graphs: whether CUDA graphs are used. What one works in stays its own between steps, but PyTorch counts it as
            free then: so all that PyTorch has taken from the GPU counts.
    """

    def __init__(self, device: torch.device, *, graphs: bool = False) -> None:
        self._device = device
        self._graphs = graphs
        self._before = 0

    @property
    def peak(self) -> int:
        """The most so far, in bytes."""
        if self._device.type != "cuda":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        measure = torch.cuda.max_memory_reserved if self._graphs else torch.cuda.max_memory_allocated
        return max(self._before, measure(self._device))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave out, on a GPU, what is done within; all but what is still there afterwards."""
        if self._device.type != "cuda":
            yield
            return
        self._before = self.peak
        yield
        if self._graphs:
            torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
