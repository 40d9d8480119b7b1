"""Batches decoded by Pillow and torchvision's transforms in processes of their own, where there is no DALI."""

from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from resist_hvd.data.broken import BrokenFiles, read_trusted
from resist_hvd.data.files.loader import ImageLoader, TrainingPlan, preprocess_of
from resist_hvd.data.files.loader_processes import forked_from_a_server
from resist_hvd.data.files.process_batches import Made, made_by_processes, normalised, sound_batches
from resist_hvd.data.files.windows import random_windows
from resist_hvd.data.folders import ImageIndex
from resist_hvd.data.preprocess import as_tensor
from resist_hvd.data.source import Batch
from resist_hvd.settings.data import DataSettings

GREY_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in what an image without saturation shows (ITU-R BT.601)."""

MIDDLE_GREY = 128.0
"""Grey value that a change of contrast leaves alone."""


class TrainingBatches(Dataset[Made]):
    """Training batches by the number of samples that all workers have drawn before.

    What a process of the loader runs. Each finds out about broken files by itself.
    """

    def __init__(self, settings: DataSettings, index: ImageIndex, plan: TrainingPlan) -> None:
        self._settings = settings
        self._index = index
        self._plan = plan
        self._faults: dict[int, str] = {}

    def __getitem__(self, samples_drawn: int) -> Made:
        """Return the batch, and all faults found so far."""
        images, draws = self._plan.batch(samples_drawn)
        decoded = [found for image in images.tolist() if (found := self._decoded(image)) is not None]
        if len(decoded) < len(images):
            return torch.empty(0), torch.empty(0), dict(self._faults)
        heights, widths = (np.array([pixels.shape[axis] for _, pixels in decoded]) for axis in (0, 1))
        windows = random_windows(draws, heights, widths).tolist()
        settings = self._settings
        pictures = []
        for number, ((_, pixels), window) in enumerate(zip(decoded, windows, strict=True)):
            size = [settings.size, settings.size]
            picture = functional.resized_crop(
                as_tensor(pixels), *window, size, InterpolationMode.BILINEAR, antialias=True
            )
            if settings.color_jitter:
                picture = recoloured(picture, 1 + settings.color_jitter * draws.colours[number])
            pictures.append(functional.horizontal_flip(picture) if draws.mirrored[number] else picture)
        labels = self._index.labels[[image for image, _ in decoded]]
        return normalised(pictures, settings.image_type), torch.from_numpy(labels), dict(self._faults)

    def _decoded(self, image: int) -> tuple[int, NDArray[np.uint8]] | None:
        """The image, or the next one that is sound: its number and its pixels; None where there is no sound one."""
        for following in range(len(self._index)):
            candidate = (image + following) % len(self._index)
            if candidate in self._faults:
                continue
            try:
                return candidate, read_trusted(self._index.encoded_path(candidate))
            except ValueError as fault:
                self._faults[candidate] = str(fault)
        return None


class PlainBatches(Dataset[Made]):
    """Test batches by their numbers; broken files are left out."""

    def __init__(self, settings: DataSettings, index: ImageIndex, images: NDArray[np.int64]) -> None:
        self._settings = settings
        self._cut = preprocess_of(settings).cut
        self._index = index
        self._images = images

    def __len__(self) -> int:
        return -(-len(self._images) // self._settings.test_batch_size)

    def __getitem__(self, number: int) -> Made:
        """Return a batch, perhaps an empty one, and the faults in it."""
        settings = self._settings
        pictures, labels = [], []
        faults: dict[int, str] = {}
        start = number * settings.test_batch_size
        for image in self._images[start : start + settings.test_batch_size].tolist():
            try:
                picture = self._cut(read_trusted(self._index.encoded_path(image)))
            except ValueError as fault:
                faults[image] = str(fault)
                continue
            pictures.append(picture)
            labels.append(int(self._index.labels[image]))
        batch = normalised(pictures, settings.image_type) if pictures else torch.empty(0)
        return batch, torch.tensor(labels, dtype=torch.int64), faults


def recoloured(picture: Tensor, factors: NDArray[np.float64]) -> Tensor:
    """An image, uint8 [3, H, W], whose brightness, contrast and saturation are multiplied by `factors` [3].

    All in one linear map about the middle grey, as DALI's `color_twist` has it.
    """
    brightness, contrast, saturation = factors.tolist()
    pixels = picture.float()
    grey = (pixels * torch.tensor(GREY_WEIGHTS).view(3, 1, 1)).sum(dim=0, keepdim=True)
    saturated = torch.lerp(grey, pixels, saturation)
    changed: Tensor = brightness * (contrast * saturated + (1 - contrast) * MIDDLE_GREY)
    return changed.round_().clamp_(0, 255).to(torch.uint8)


class TorchvisionLoader(ImageLoader):
    """Decodes image files in worker processes."""

    name = "torchvision"

    def __init__(self, settings: DataSettings, *, device: torch.device, broken: BrokenFiles) -> None:
        super().__init__(settings, device=device, broken=broken)
        self._processes = forked_from_a_server(preload=__name__)

    def train(self, index: ImageIndex, plan: TrainingPlan, samples_drawn: int) -> Iterator[Batch]:
        """Endless training batches, from where all workers have drawn so many samples."""
        positions = count(samples_drawn, plan.after(0))
        return self._batches(index, TrainingBatches(self.settings, index, plan), positions)

    def test(self, index: ImageIndex, images: NDArray[np.int64]) -> Iterator[Batch]:
        """The images of these numbers in their order, without augmentation; the last batch may be smaller."""
        batches = PlainBatches(self.settings, index, images)
        return self._batches(index, batches, range(len(batches)))

    def _batches(self, index: ImageIndex, batches: Dataset[Made], numbers: Iterable[int]) -> Iterator[Batch]:
        made = made_by_processes(
            batches, numbers, processes=self._processes, settings=self.settings, device=self.device
        )
        return sound_batches(made, index, self.broken)
