"""Recording work as a CUDA graph: on a stream that is nobody else's, and undisturbed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a stream to warm up and to capture on.

    PyTorch deals out the same few streams of a priority again and again: one of the ordinary priority might be the
    loader's, whose copies would then be captured, or break the capture.
    """
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> Iterator[None]:
    """Record what is done within.

    Threads of the loader and of Horovod go on: what they allocate meanwhile breaks no capture. The collector of garbage
    waits: it may come upon tensors or graphs of CUDA, and what destroys those is not permitted in a capture.

    Raises:
        RuntimeError: CUDA refuses it.
    """
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            yield
    finally:
        if collects:
            gc.enable()
