"""Interface of loaders, which decode image files into batches, and the plan of what they decode.

A loader keeps no position and draws nothing at random: what a batch is made of is a function of the number of its first
sample (`TrainingPlan`). So any loader can begin anywhere, and all make the same batches but for roundings in decoding.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from resist_hvd.data.broken import BrokenFiles
from resist_hvd.data.files.training_stream import Plan
from resist_hvd.data.files.windows import WORDS_PER_WINDOW, Draws
from resist_hvd.data.folders import ImageIndex
from resist_hvd.data.order import sample_words
from resist_hvd.data.preprocess import Preprocess
from resist_hvd.data.source import Batch
from resist_hvd.settings.data import DataSettings

MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Of ImageNet's red, green and blue: the figures that published models were trained with."""

BATCH_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Types of batches by the names of `DataSettings.image_type`."""


def preprocess_of(settings: DataSettings) -> Preprocess:
    """Return how test images are prepared."""
    return Preprocess(image_size=settings.size, channels=3, mean=MEAN, std=STD, test_resize=settings.resize_before_test)


@dataclass(frozen=True, kw_only=True)
class TrainingPlan(Plan):
    """One worker's training images, and what is drawn at random for each: a function of the sample's number.

    Attributes:
        least_area: the smallest share of an image that a random window covers.
        may_mirror: whether half of the images are mirrored.
    """

    least_area: float
    may_mirror: bool

    def batch(self, samples_drawn: int) -> tuple[NDArray[np.int64], Draws]:
        """The images [B] of this worker's batch once all workers have drawn so many samples, and what was drawn."""
        first = self.first(samples_drawn)
        words = sample_words(self.order.seed, first, self.batch_size, each=WORDS_PER_WINDOW)
        draws = Draws.of(words, least_area=self.least_area, may_mirror=self.may_mirror)
        return self.order.images(first, self.batch_size), draws


class ImageLoader(ABC):
    """Decodes the files of an `ImageIndex` into batches as `DataSettings` ask for, on one device.

    Where that is a GPU, batches are made in the current stream of the thread that asks for them.

    Args:
        settings: sizes, augmentation, threads or processes, prefetching.
        device: where batches are wanted.
        broken: what is done about broken files.
    """

    name: str

    def __init__(self, settings: DataSettings, *, device: torch.device, broken: BrokenFiles) -> None:
        self.settings = settings
        self.device = device
        self.broken = broken

    @abstractmethod
    def train(self, index: ImageIndex, plan: TrainingPlan, samples_drawn: int) -> Iterator[Batch]:
        """Endless training batches, from where all workers have drawn so many samples; some are made in advance."""

    @abstractmethod
    def test(self, index: ImageIndex, images: NDArray[np.int64]) -> Iterator[Batch]:
        """The images of these numbers in their order, without augmentation; the last batch may be smaller."""

    def close(self) -> None:
        """Let go of threads, processes and memory; iterators that it returned are of no use afterwards."""
