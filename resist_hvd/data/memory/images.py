"""Labelled images held in memory as bytes, from which whole batches are cropped, mirrored and normalised at once.

Images are stored with their crop's padding around them, so that a crop is nothing but a choice of rows: one gather
copies all rows of all crops of a batch. The padding is put on before normalisation, so it is black (0), not the mean
colour. Everything here is a copy or one multiplication and one addition a pixel, hence the same to the bit at any
number of threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resist_hvd.data.preprocess import scale_and_offset
from resist_hvd.data.side_stream import to_device
from resist_hvd.data.source import Batch
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings

_IMAGES_A_TASK = 64
"""Images that a thread fills in at a time."""

_PIXELS_A_STEP = 100_000
"""Pixels that the statistics convert at once: few enough to stay in the cache."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Square images with a black border around each, and their labels.

    Attributes:
        padded: uint8 [N, size + 2 padding, size + 2 padding, C], contiguous.
        labels: int64 [N].
        padding: width of the border in pixels.
    """

    padded: Tensor
    labels: Tensor
    padding: int

    @classmethod
    def blank(cls, count: int, *, image_size: int, channels: int, padding: int) -> Self:
        """Black images of class 0, for a reader to fill in through `images` and `labels`."""
        side = image_size + 2 * padding
        padded = torch.zeros(count, side, side, channels, dtype=torch.uint8)
        return cls(padded=padded, labels=torch.zeros(count, dtype=torch.int64), padding=padding)

    @classmethod
    def of(cls, images: Tensor, labels: Tensor, *, padding: int) -> Self:
        """Put the border around `images`, uint8 [N, size, size, C]."""
        filled = cls.blank(len(images), image_size=images.shape[1], channels=images.shape[3], padding=padding)
        filled.images.copy_(images)
        filled.labels.copy_(labels)
        return filled

    def __len__(self) -> int:
        return len(self.padded)

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels, without its border."""
        return self.padded.shape[1] - 2 * self.padding

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return self.padded.shape[3]

    @property
    def images(self) -> Tensor:
        """The images without their border: a view, uint8 [N, size, size, C]."""
        inside = slice(self.padding, self.padding + self.image_size)
        return self.padded[:, inside, inside]

    def fill(self, square: Callable[[int], NDArray[np.uint8]], *, threads: int) -> None:
        """Fill in each image with what is made of its number, uint8 [size, size, C], in threads.

        Decoding and scaling release Python's lock; the images are the same for any number of threads.
        """
        pixels = self.images.numpy()

        def fill_some(numbers: range) -> None:
            for number in numbers:
                pixels[number] = square(number)

        starts = range(0, len(self), _IMAGES_A_TASK)
        with ThreadPoolExecutor(threads) as pool:
            tasks = [range(start, min(start + _IMAGES_A_TASK, len(self))) for start in starts]
            for _ in pool.map(fill_some, tasks):
                pass  # what a task has raised is raised here

    def to(self, device: torch.device) -> Self:
        """The same on `device`; nothing is copied where they are there already."""
        return type(self)(padded=self.padded.to(device), labels=self.labels.to(device), padding=self.padding)

    def select(self, chosen: NDArray[np.bool_]) -> Self:
        """Copies of some images, in their order.

        Args:
            chosen: whether an image is among them, [N].
        """
        numbers = torch.from_numpy(np.flatnonzero(chosen))
        return type(self)(padded=self.padded[numbers], labels=self.labels[numbers], padding=self.padding)

    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Exact mean and standard deviation of each channel over all images, in 0 to 255: two float64 [C]."""
        total = torch.zeros(self.channels, dtype=torch.int64)
        total_of_squares = torch.zeros(self.channels, dtype=torch.int64)
        images_a_step = max(1, _PIXELS_A_STEP // self.image_size**2)
        for start in range(0, len(self), images_a_step):
            pixels = self.images[start : start + images_a_step].reshape(-1, self.channels).to(torch.int32)
            total += pixels.sum(dim=0)
            total_of_squares += pixels.square().sum(dim=0)
        count = len(self) * self.image_size**2
        mean = total.double() / count
        # The variance's numerator is computed in whole numbers: a difference of large, close numbers.
        spread = [count * int(squares) - int(sum_) ** 2 for squares, sum_ in zip(total_of_squares, total, strict=True)]
        return mean, torch.tensor(spread, dtype=torch.float64).sqrt() / count


def check_memory(
    settings: DataSettings, *, train: int, test: int, size: int, padding: int, where: Path, bytes_a_pixel: int = 3
) -> None:
    """Check that images of a size, in colour by default, are not too many for the memory that they may take.

    Raises:
        UserError: they are.
    """
    needed = (train * (size + 2 * padding) ** 2 + test * size**2) * bytes_a_pixel / 2**30
    if needed > settings.resident_limit_gib:
        raise UserError(
            f"The images would take {needed:.3g} GiB of memory on each worker, more than the "
            f"{settings.resident_limit_gib:.3g} GiB of --data.resident_limit_gib",
            where=str(where),
            mend="Give a smaller --data.image_size, or a higher limit where there is more memory.",
        )


class BatchMaker:
    """Makes normalised batches out of `LabelledImages`: y = (x - mean) / std, channel by channel.

    Args:
        images: where the batches are taken from; the batches lie on the same device.
        mean, std: float64 [C], in 0 to 255. A channel whose std is 0 is only centred.
    """

    def __init__(self, images: LabelledImages, *, mean: Tensor, std: Tensor) -> None:
        self._images = images
        size, channels, device = images.image_size, images.channels, images.padded.device
        side = size + 2 * images.padding
        self._side = side
        # Row r of this view is the `size` pixels from the r-th pixel of the store on; rows overlap.
        self._rows = images.padded.as_strided(
            (max(0, len(images) * side * side - size + 1), size * channels), (channels, 1)
        )
        self._row_steps = torch.arange(size, device=device) * side
        # Repeated for all pixels of a row, so that normalising runs along contiguous memory.
        self._scale, self._offset = (values.repeat(size).to(device) for values in scale_and_offset(mean, std))

    def augmented(
        self, chosen: NDArray[np.int64], top: NDArray[np.int64], left: NDArray[np.int64], mirrored: NDArray[np.bool_]
    ) -> Batch:
        """The `chosen` images [B], cropped from `top` and `left` of their padded selves on, some of them `mirrored`."""
        count = len(chosen)
        corners = (chosen * self._side + top) * self._side + left
        # All crops are followed by all crops mirrored; this picks one of the two for each image.
        picks = np.arange(count) + count * mirrored
        chosen_, corners_, picks_ = self._to_device(np.stack([chosen, corners, picks]))
        crops = self._crops(corners_)
        if mirrored.any():
            # PyTorch mirrors fastest in this layout and in whole batches, faster than only those that need it.
            flipped = crops.permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1)
            crops = torch.cat([crops, flipped]).index_select(0, picks_)
        return self._normalised(crops), self._images.labels.index_select(0, chosen_)

    def plain(self, chosen: NDArray[np.int64]) -> Batch:
        """The `chosen` images [B] as they are."""
        corner = self._images.padding * (self._side + 1)
        chosen_, corners = self._to_device(np.stack([chosen, chosen * self._side**2 + corner]))
        return self._normalised(self._crops(corners)), self._images.labels.index_select(0, chosen_)

    def _to_device(self, numbers: NDArray[np.int64]) -> Tensor:
        """All of a batch's numbers in one transfer, which a GPU does not wait for."""
        return to_device(torch.from_numpy(numbers), self._images.padded.device)

    def _crops(self, corners: Tensor) -> Tensor:
        """Crops [B, size, size, C] from the numbers of their first pixels in the store [B]."""
        rows = (corners[:, None] + self._row_steps).view(-1)
        size = self._images.image_size
        return self._rows.index_select(0, rows).view(len(corners), size, size, self._images.channels)

    def _normalised(self, crops: Tensor) -> Tensor:
        count, size, _, channels = crops.shape
        # Two roundings in two operations: a fused one may round once or twice, by where a thread's share ends.
        pixels = crops.view(count, size, size * channels).to(torch.float32).mul_(self._scale).add_(self._offset)
        if channels == 1:
            return pixels.view(count, 1, size, size)
        return pixels.view(count, size, size, channels).permute(0, 3, 1, 2)
