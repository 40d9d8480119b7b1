"""Batches of images and their objects, as a process of the loader makes them: functions of a sample's number.

Images are stretched to the network's size, and objects' edges are shares of an image's sides, so that nothing of its
own size is needed to read them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from resist_hvd.data.detection.annotated import AnnotatedImages, Example
from resist_hvd.data.files.process_batches import Made, normalised
from resist_hvd.data.files.torchvision_loader import recoloured
from resist_hvd.data.files.training_stream import Plan
from resist_hvd.data.order import sample_words
from resist_hvd.settings.data import DataSettings
from resist_hvd.tasks.objects import COLUMNS, packed

WORDS_PER_IMAGE = 8
"""64-bit random words that an image takes for everything random about it."""

LEAST_SIDE = 0.002
"""An object of which a random window leaves less than this share of the image's side is none: a pixel at 448."""


class DetectionPlan(Plan):
    """One worker's training images, and what is drawn at random for each: a function of the sample's number."""

    def batch(self, samples_drawn: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The images [B] of this worker's batch once all have drawn so many samples, and numbers from 0 to 1 [B, 8]."""
        first = self.first(samples_drawn)
        words = sample_words(self.order.seed, first, self.batch_size, each=WORDS_PER_IMAGE)
        return self.order.images(first, self.batch_size), (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def stretched(example: Example, size: int) -> Example:
    """Return an image and its boxes, scaled to size x size pixels."""
    image, objects = example
    boxes = functional.resize(objects["boxes"], [size, size])
    return functional.resize(image, [size, size], antialias=True), {**objects, "boxes": boxes}


def augmented(example: Example, drawn: NDArray[np.float64], settings: DataSettings) -> Example:
    """Return an image with other edges, other colours, and perhaps mirrored, as `settings` ask for.

    Args:
        example: the image and its objects.
        drawn: eight numbers from 0 up to 1.
        settings: how much each edge may move, and colours may change, and whether half of the images are mirrored.
    """
    image, objects = example
    if settings.jitter:
        height, width = image.shape[-2:]
        moved = np.rint((2 * drawn[:4] - 1) * settings.jitter * np.array([height, width, height, width])).astype(int)
        top, left, bottom, right = moved.tolist()
        window = top, left, max(1, height + bottom - top), max(1, width + right - left)
        image, boxes = (functional.crop(each, *window) for each in (image, objects["boxes"]))
        sides = (boxes[:, 2:] - boxes[:, :2]) / torch.tensor([window[3], window[2]])
        kept = (sides > LEAST_SIDE).all(dim=1)
        boxes = tv_tensors.wrap(boxes[kept], like=boxes)
        objects = {"boxes": boxes, **{name: objects[name][kept] for name in ("labels", "difficult")}}
    if settings.color_jitter:
        image = tv_tensors.Image(recoloured(image, 1 + settings.color_jitter * (2 * drawn[5:] - 1)))
    if settings.flip and drawn[4] < 0.5:
        image = functional.horizontal_flip(image)
        objects = {**objects, "boxes": functional.horizontal_flip(objects["boxes"])}
    return image, objects


def row_of(example: Example, most: int) -> Tensor:
    """Return the row of targets that an image's objects are: see `tasks.objects.packed`."""
    image, objects = example
    height, width = image.shape[-2:]
    shares = objects["boxes"].as_subclass(Tensor) / torch.tensor([width, height, width, height])
    return packed(shares, objects["labels"], objects["difficult"], most)


class TrainingBatches(Dataset[Made]):
    """Training batches by the number of samples that all workers have drawn before.

    What a process of the loader runs. Each finds out about broken files by itself.
    """

    def __init__(self, settings: DataSettings, images: AnnotatedImages, plan: DetectionPlan) -> None:
        self._settings, self._images, self._plan = settings, images, plan
        self._most = int(images.counts.max(initial=1))
        self._faults: dict[int, str] = {}

    def __getitem__(self, samples_drawn: int) -> Made:
        """Return the batch, and all faults found so far."""
        settings = self._settings
        numbers, drawn = self._plan.batch(samples_drawn)
        pictures, rows = [], []
        for number, own in zip(numbers.tolist(), drawn, strict=True):
            example = self._sound(number)
            if example is None:
                return torch.empty(0), torch.empty(0), dict(self._faults)
            example = stretched(augmented(example, own, settings), settings.size)
            pictures.append(example[0].as_subclass(Tensor))
            rows.append(row_of(example, self._most))
        return normalised(pictures, settings.image_type), torch.stack(rows), dict(self._faults)

    def _sound(self, image: int) -> Example | None:
        """The image and its objects, or the next one whose file is sound; None where there is no sound one."""
        for following in range(len(self._images)):
            candidate = (image + following) % len(self._images)
            if candidate in self._faults:
                continue
            try:
                return self._images.example(candidate)
            except ValueError as fault:
                self._faults[candidate] = str(fault)
        return None


class PlainBatches(Dataset[Made]):
    """Batches of some images in their order, without augmentation, by their numbers; broken files are left out."""

    def __init__(self, settings: DataSettings, images: AnnotatedImages, chosen: NDArray[np.int64]) -> None:
        self._settings, self._images, self._chosen = settings, images, chosen
        self._most = int(images.counts.max(initial=1))

    def __len__(self) -> int:
        return -(-len(self._chosen) // self._settings.test_batch_size)

    def __getitem__(self, number: int) -> Made:
        """Return a batch, perhaps an empty one, and the faults in it."""
        settings = self._settings
        pictures, rows = [], []
        faults: dict[int, str] = {}
        start = number * settings.test_batch_size
        for image in self._chosen[start : start + settings.test_batch_size].tolist():
            try:
                example = stretched(self._images.example(image), settings.size)
            except ValueError as fault:
                faults[image] = str(fault)
                continue
            pictures.append(example[0].as_subclass(Tensor))
            rows.append(row_of(example, self._most))
        if not pictures:
            return torch.empty(0), torch.empty(0, self._most, COLUMNS), faults
        return normalised(pictures, settings.image_type), torch.stack(rows), faults
