"""Streams for making batches on a GPU beside the stream that computes, and the handing over from one to the other.

Work within one stream of a GPU runs in order, so a step would wait for batches that are made in its own stream. Made in
another one, a batch is waited for by the GPU alone, and only by what is done with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

IN_USE = 4
"""Batches whose use may be under way on a GPU before the next one is made: enough that the GPU never waits for its
process, and a bound for what they take where the process hurries on, as with CUDA graphs."""


class SideStream:
    """A GPU's stream in which batches are made beside the one that computes, and their handing over to the latter.

    On a CPU there is none, and nothing to wait for.

    Args:
        device: where batches are made.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._uses: deque[torch.cuda.Event] = deque()

    def making(self) -> AbstractContextManager[object]:
        """Have this thread work on the stream's device and in the stream; memory is allocated for it."""
        if self._stream is None:
            return nullcontext()
        # A thread begins with the first GPU. Were it to go back there afterwards, every worker would take memory of it.
        torch.cuda.set_device(self._stream.device)
        return torch.cuda.stream(self._stream)

    def made(self, item: T) -> Callable[[], T]:
        """Note that an item, a tensor or a tuple of them, is ready once the stream has done all that it was given.

        Waits until few enough items are in use.

        Returns:
            A function to be called where the item is used. It returns the item at once: the current stream of its
            caller waits, and what follows there finds the item ready.
        """
        stream = self._stream
        if stream is None:
            return lambda: item
        while len(self._uses) > IN_USE:
            self._uses.popleft().synchronize()
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record(stream)

        def take() -> T:
            user = torch.cuda.current_stream(stream.device)
            # What is in the user's stream so far is the use of the items before this one.
            use = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            use.record(user)
            self._uses.append(use)
            user.wait_event(ready)
            for tensor in _tensors(item):
                # Once let go, its memory serves the next batch only after what the user's stream does with it by then.
                tensor.record_stream(user)
            return item

        return take


def made_beside(items: Iterator[T], stream: SideStream) -> Iterator[T]:
    """Yield the items of an iterator, each made in a stream when it is asked for."""
    while True:
        with stream.making():
            try:
                take = stream.made(next(items))
            except StopIteration:
                return
        yield take()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host's memory on a device; nobody waits for a copy to a GPU but its current stream."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _tensors(item: object) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, tuple):
        for part in item:
            yield from _tensors(part)
