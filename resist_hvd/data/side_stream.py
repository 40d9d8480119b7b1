"""Streams for making batches on a GPU beside the stream that computes, and the handing over from one to the other.

Work within one stream of a GPU runs in order, so a step would wait for batches that are made in its own stream. Made in
another one, a batch is waited for by the GPU alone, and only by what is done with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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


class MakingStream(ABC):
    """The stream on which batches are made, and how they are handed over to where they are used."""

    @abstractmethod
    def making(self) -> AbstractContextManager[object]:
        """Have this thread work on the stream's device and in the stream; memory is allocated for it."""

    @abstractmethod
    def made(self, item: T) -> Callable[[], T]:
        """Note that an item, a tensor or a tuple of them, is ready once the stream has done all that it was given.

        Returns:
            A function to be called where the item is used. It returns the item at once: the current stream of its
            caller waits, and what follows there finds the item ready.
        """


class SameStream(MakingStream):
    """No stream of its own: there is nothing to wait for, as on a CPU."""

    def making(self) -> AbstractContextManager[object]:
        """Change nothing."""
        return nullcontext()

    def made(self, item: T) -> Callable[[], T]:
        """Return a function that returns the item."""
        return lambda: item


class SideStream(MakingStream):
    """A GPU's stream beside the one that computes.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._uses: deque[torch.cuda.Event] = deque()

    def making(self) -> AbstractContextManager[object]:
        """Have this thread work on the stream's device and in the stream."""
        # A thread begins with the first GPU. Were it to go back there afterwards, every worker would take memory of it.
        torch.cuda.set_device(self._stream.device)
        return torch.cuda.stream(self._stream)

    def made(self, item: T) -> Callable[[], T]:
        """Record an event for the user's stream to wait for; wait until few enough items are in use."""
        while len(self._uses) > IN_USE:
            self._uses.popleft().synchronize()
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record(self._stream)

        def take() -> T:
            user = torch.cuda.current_stream(self._stream.device)
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


def making_stream(device: torch.device) -> MakingStream:
    """Return a new stream to make batches for a device in."""
    return SideStream(device) if device.type == "cuda" else SameStream()


def made_beside(items: Iterator[T], stream: MakingStream) -> Iterator[T]:
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
