"""An average among all workers that goes on beside steps, in the memory of two pieces."""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resist_hvd.comm.world import World
from resist_hvd.protocol.exchange import piece_bytes, ring_bytes


class Shift:
    """Replaces a buffer's content by the average over all workers minus that content, as often as it is begun.

    A worker that has gone on from that content meanwhile adds the difference to what it has then. Piece by piece, the
    content is copied to where Horovod averages it, and the difference takes its place; so this takes no second buffer.

    `advance` may be called by another thread than `begin` and `finish`, but by one thread at a time. On a CPU it
    computes by NumPy, in this thread alone: PyTorch would start another team of threads for each thread that calls it.

    Args:
        world: all workers.
        flat: the buffer, contiguous and laid out alike on all ranks.
        name: of the average, the same on all ranks.
        staged: whether pieces of a GPU's buffer pass through pinned host memory.

    Attributes:
        bytes_sent: payload of one average.
    """

    def __init__(self, world: World, flat: Tensor, name: str, *, staged: bool) -> None:
        self.bytes_sent = ring_bytes(flat.nbytes, world.size)
        self._world = world
        self._name = name
        self._flat = flat
        size = max(1, piece_bytes(flat.nbytes) // flat.itemsize)
        self._pieces = torch.split(flat, size)
        on_gpu = flat.is_cuda
        where = torch.device("cpu") if staged else flat.device
        self._window = [torch.empty(size, dtype=flat.dtype, device=where, pin_memory=staged and on_gpu) for _ in "ab"]
        self._stream: Any = torch.cuda.Stream(flat.device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._returned = torch.empty_like(flat[:size]) if staged and on_gpu else None
        self._under_way: deque[int] = deque()  # Horovod's handles, oldest first
        self._started = len(self._pieces)

    @property
    def _landed(self) -> int:
        return self._started - len(self._under_way)

    def begin(self) -> None:
        """Begin with the buffer's present content; it may be read from now on, and not be written."""
        if self._world.size == 1:
            self._flat.zero_()
            return
        self._started = 0
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._flat.device))

    def advance(self) -> bool:
        """Take in pieces whose average is there, and send others after them; never wait for another rank.

        Returns:
            Whether all have been taken in.
        """
        import horovod.torch as hvd

        while self._under_way and hvd.poll(self._under_way[0]):
            hvd.synchronize(self._under_way[0])
            self._take_in(self._landed)
            self._under_way.popleft()
            self._world.activity.progress()
            self._start()
        while self._started < len(self._pieces) and len(self._under_way) < len(self._window):
            self._start()
        return self._landed == len(self._pieces)

    def finish(self) -> None:
        """Have what the device does from now on see the differences, once `advance` has said that all are there."""
        if self._stream is not None:
            torch.cuda.current_stream(self._flat.device).wait_stream(self._stream)

    def _start(self) -> None:
        if self._started == len(self._pieces):
            return
        import horovod.torch as hvd

        buffer, piece = self._at(self._started)
        with self._on_stream():
            if self._stream is None:
                np.copyto(buffer.numpy(), piece.numpy())
            else:
                buffer.copy_(piece, non_blocking=True)
            if self._returned is not None:
                self._stream.synchronize()
            self._under_way.append(hvd.allreduce_async_(buffer, name=f"{self._name}.{self._started}", op=hvd.Average))
        self._started += 1

    def _take_in(self, number: int) -> None:
        """Put the difference in a piece's place."""
        average, piece = self._at(number)
        if self._stream is None:
            np.subtract(average.numpy(), piece.numpy(), out=piece.numpy())
            return
        with self._on_stream():
            if self._returned is not None:
                average = self._returned[: len(piece)].copy_(average, non_blocking=True)
            torch.sub(average, piece, out=piece)
            if self._returned is not None:
                self._stream.synchronize()  # the host's buffer is the next piece's

    def _at(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the buffer in which a piece is averaged, and the piece."""
        piece = self._pieces[number]
        return self._window[number % len(self._window)][: len(piece)], piece

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
