"""Whole images scaled to squares, width and height each by itself, as detectors of a fixed input size take them."""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resist_hvd.data.broken import read_trusted
from resist_hvd.data.side_stream import to_device
from resist_hvd.errors import UserError

Choices = Iterator[NDArray[np.int64]]
"""For each batch, the numbers of its images [B]."""


@dataclass(frozen=True, kw_only=True)
class SquareFormat:
    """Size, normalisation and batches of decoded squares.

    Attributes:
        size: height and width in pixels.
        mean, std: each channel's, of pixel values from 0 to 255.
        batch_size: the most images of a batch.
        threads: how many images are decoded at a time.
        prefetch: batches that are made in advance.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    batch_size: int
    threads: int
    prefetch: int = 2


class SquareDecoder(ABC):
    """Decodes image files into batches on one device."""

    @abstractmethod
    def batches(self, paths: Sequence[Path], choices: Choices) -> Iterator[Tensor]:
        """Yield a batch for each choice: float32 [B, 3, size, size], normalised, channels_last in memory.

        Raises:
            UserError: an image is damaged; the message names its file.
        """


class PillowSquares(SquareDecoder):
    """Decodes with libjpeg-turbo and Pillow, whose decoding and scaling leave Python's lock to other threads."""

    def __init__(self, format: SquareFormat, device: torch.device) -> None:
        self._format = format
        self._device = device

    def batches(self, paths: Sequence[Path], choices: Choices) -> Iterator[Tensor]:
        """Yield batches, some of which are decoded in advance."""
        mean, scale = (
            torch.tensor(values, device=self._device).view(1, 3, 1, 1)
            for values in (self._format.mean, [1 / std for std in self._format.std])
        )
        with ThreadPoolExecutor(self._format.threads) as pool:
            try:
                for squares in _in_advance(
                    choices, lambda chosen: self._begin(pool, paths, chosen), self._format.prefetch
                ):
                    pixels = torch.from_numpy(np.stack([square.result() for square in squares]))
                    pixels = to_device(pixels, self._device)
                    yield (pixels.permute(0, 3, 1, 2).float() - mean) * scale
            finally:
                pool.shutdown(cancel_futures=True)

    def _begin(
        self, pool: ThreadPoolExecutor, paths: Sequence[Path], chosen: NDArray[np.int64]
    ) -> list[Future[NDArray[np.uint8]]]:
        return [pool.submit(read_square, paths[image], self._format.size) for image in chosen]


def _in_advance(
    choices: Choices,
    begin: Callable[[NDArray[np.int64]], list[Future[NDArray[np.uint8]]]],
    prefetch: int,
) -> Iterator[list[Future[NDArray[np.uint8]]]]:
    pending: deque[list[Future[NDArray[np.uint8]]]] = deque()
    for chosen in choices:
        pending.append(begin(chosen))
        if len(pending) > prefetch:
            yield pending.popleft()
    yield from pending


def read_square(path: Path, size: int) -> NDArray[np.uint8]:
    """Read an image file and scale it, bilinearly and without aliasing: uint8 [size, size, 3].

    Raises:
        UserError: it is damaged.
    """
    pixels = Image.fromarray(read_whole(path))
    return np.asarray(pixels.resize((size, size), Image.Resampling.BILINEAR))


def read_whole(path: Path) -> NDArray[np.uint8]:
    """Read an image file: uint8 [H, W, 3].

    Raises:
        UserError: it is damaged.
    """
    try:
        return read_trusted(os.fsencode(path))
    except ValueError as error:
        raise UserError(
            f"The image file {error}",
            where=str(path),
            mend="Unpack its archive anew, or put a sound copy in its place.",
        ) from error
