"""Batches for detection: images of Pascal VOC and the boxes and classes in them, in shapes that never change.

As in the paper's experiment (section 6.3), training is on the lists trainval of 2007 and 2012 and testing on the list
test of 2007, both on images of 448 x 448 pixels without augmentation.
"""

import importlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resist_hvd.data.detection.squares import PillowSquares, SquareDecoder, SquareFormat
from resist_hvd.data.detection.voc import CLASSES, AnnotatedImages, read_lists
from resist_hvd.data.files.imagenet import MEAN, STD, dali_is_installed
from resist_hvd.data.order import EpochOrder
from resist_hvd.data.side_stream import made_beside, making_stream, to_device
from resist_hvd.data.source import DataSpec, Shard
from resist_hvd.data.stream import Position, check_one_batch
from resist_hvd.errors import UserError
from resist_hvd.settings.data import LoaderName, own_cores

NO_OBJECT = -1
"""The label of a place in a batch's targets that holds no object."""


@dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """Settings of object detection on Pascal VOC: images, classes, batches.

    Raises:
        ValueError: a value that is wrong by itself.
    """

    root: Path
    """The folder VOCdevkit, or the one that holds it."""

    classes: tuple[str, ...] = CLASSES
    """Classes to be found; objects of others are left out. Any names that annotations have."""

    train: tuple[str, ...] = ("2007-trainval", "2012-trainval")
    """The lists to train on, each the year of a folder VOC... and the name of a list in its ImageSets/Main."""

    test: tuple[str, ...] = ("2007-test",)
    """The lists to test on, named likewise."""

    train_on_difficult: bool = False
    """Train on objects that are marked difficult, too. In testing they always come, marked."""

    ignore_exif: bool = False
    """Take boxes to be for the pixels as they are stored, where EXIF says that an image is to be turned when shown and
    its annotation tells not which is meant; such images are refused otherwise."""

    image_size: int = 448
    """Height and width in pixels that images are scaled to."""

    batch_size: int = 10
    """Images in each worker's training batch."""

    test_batch_size: int = 64
    """Images in each worker's batch of the test set."""

    mean: tuple[float, float, float] = MEAN
    """Each channel's mean pixel value, from 0 to 255, as on ImageNet."""

    std: tuple[float, float, float] = STD
    """Each channel's standard deviation, likewise."""

    loader: LoaderName = "auto"
    """Decoder: dali (NVIDIA DALI), torchvision (Pillow in threads), or auto: dali where it is installed."""

    decode_threads: int | None = None
    """Threads that decode. Default: one for each core that this process may run on."""

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size", "test_batch_size", "decode_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give a number of at least 1")
        for name in ("classes", "train", "test"):
            values = getattr(self, name)
            if isinstance(values, str):
                raise ValueError(f"{name} is the text {values!r}; give a tuple, as ({values!r},)")
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} is {values}; give at least one, and none twice")
        for name in (*self.train, *self.test):
            if not all(name.partition("-")):
                raise ValueError(f"a list is {name!r}; give a year and the list's name, as '2007-{name.strip('-')}'")


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The objects of some images, in as many places an image as the one with the most objects needs.

    Attributes:
        boxes: float32 [images, places, 4], left, top, right and bottom edge in pixels of the scaled image; 0 where a
            place is empty.
        labels: int64 [images, places], `NO_OBJECT` where it is.
        difficult: bool [images, places].
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor

    @classmethod
    def of(cls, images: AnnotatedImages, *, size: int, places: int) -> Self:
        """Lay out the objects of `images`, each scaled to `size` pixels of width and of height."""
        owner = np.repeat(np.arange(len(images)), np.diff(images.ends, prepend=0))
        starts = images.ends - np.diff(images.ends, prepend=0)
        place = np.arange(len(owner)) - starts[owner]
        boxes = np.zeros((len(images), places, 4), dtype=np.float32)
        labels = np.full((len(images), places), NO_OBJECT, dtype=np.int64)
        difficult = np.zeros((len(images), places), dtype=np.bool_)
        boxes[owner, place] = images.boxes * (size / np.tile(images.sizes, 2)[owner])
        labels[owner, place] = images.labels
        difficult[owner, place] = images.difficult
        return cls(
            boxes=torch.from_numpy(boxes), labels=torch.from_numpy(labels), difficult=torch.from_numpy(difficult)
        )

    def to(self, device: torch.device) -> "Targets":
        """The same in a device's memory."""
        return Targets(boxes=self.boxes.to(device), labels=self.labels.to(device), difficult=self.difficult.to(device))

    def of_images(self, chosen: NDArray[np.int64]) -> "Targets":
        """The targets of some images [B], by their numbers."""
        rows = to_device(torch.from_numpy(chosen), self.labels.device)
        return Targets(boxes=self.boxes[rows], labels=self.labels[rows], difficult=self.difficult[rows])


@dataclass(frozen=True, kw_only=True)
class DetectionBatch:
    """Images and the objects in them, on the source's device.

    Attributes:
        images: float32 [B, 3, size, size], normalised, channels_last in memory.
        targets: of these images; the number of places is the same in every batch of a source.
    """

    images: Tensor
    targets: Targets


class DetectionStream(Position, Iterator[DetectionBatch]):
    """One worker's endless training batches, in an order that depends on the seed and the position alone."""

    def __init__(self, half: "_Half", *, shard: Shard, seed: int, batch_size: int) -> None:
        super().__init__(EpochOrder(len(half.images), seed), shard=shard, batch_size=batch_size)
        self._half = half
        self._batches: Iterator[DetectionBatch] | None = None

    def __next__(self) -> DetectionBatch:
        if self._batches is None:
            self._batches = self._half.batches(self._choices(self._samples_drawn))
        batch = next(self._batches)
        self._advance()
        return batch

    def _choices(self, samples_drawn: int) -> Iterator[NDArray[np.int64]]:
        drawn_at_once = self._shard.size * self._batch_size
        for drawn in itertools.count(samples_drawn, drawn_at_once):
            yield self._order.images(drawn + self._shard.rank * self._batch_size, self._batch_size)

    def load_state(self, state: dict[str, Any]) -> str | None:
        """Go to a position that `state` returned; a sentence where the batches will not be those of then.

        Raises:
            UserError: it is none that `state` returns.
        """
        sentence = super().load_state(state)
        self._batches = None
        return sentence

    def close(self) -> None:
        """End what decodes ahead."""
        self._batches = None


class DetectionSource:
    """Pascal VOC's images and objects, as one worker sees them.

    Attributes:
        spec: classes, sizes, and how images are normalised.
        places: objects that each image of a batch has room for.

    Raises:
        UserError: a file is missing or damaged, no object is of one of the classes, DALI is asked for and not
            installed, or there are fewer training images than one batch of all workers.
    """

    def __init__(self, settings: DetectionSettings, *, shard: Shard, seed: int, device: torch.device) -> None:
        train, test = (
            read_lists(settings.root, lists, settings.classes, ignore_exif=settings.ignore_exif)
            for lists in (settings.train, settings.test)
        )
        absent = sorted(set(range(len(settings.classes))) - set(train.labels.tolist()))
        if absent:
            raise UserError(
                f"No object is of the class {settings.classes[absent[0]]!r} in {', '.join(settings.train)}",
                where=str(settings.root),
                mend="Give classes as the annotations spell them.",
            )
        if not settings.train_on_difficult:
            train = train.without_difficult()
        check_one_batch(
            "voc",
            train_size=len(train),
            batch_size=settings.batch_size,
            shard=shard,
            where=str(settings.root),
        )
        self.spec = DataSpec(
            name="voc",
            classes=settings.classes,
            channels=3,
            image_size=settings.image_size,
            train_size=len(train),
            test_size=len(test),
            mean=settings.mean,
            std=settings.std,
        )
        self.places = max(train.most_objects, test.most_objects)
        self._shard = shard
        self._test_batch_size = settings.test_batch_size
        self._train_half, self._test_half = (
            _Half(images, _decoder(settings, batch_size, device), self.places, settings.image_size, device)
            for images, batch_size in ((train, settings.batch_size), (test, settings.test_batch_size))
        )
        self._stream = DetectionStream(self._train_half, shard=shard, seed=seed, batch_size=settings.batch_size)

    def train(self) -> DetectionStream:
        """This worker's training stream; every call returns the same one."""
        return self._stream

    def test(self, shard: Shard | None = None) -> Iterator[DetectionBatch]:
        """A share of the test set: each image once, the last batch may be smaller."""
        shard = shard or self._shard
        own = np.arange(shard.rank, self.spec.test_size, shard.size)
        starts = range(0, len(own), self._test_batch_size)
        return self._test_half.batches(own[start : start + self._test_batch_size] for start in starts)

    def close(self) -> None:
        """Let go of threads and memory; the source is of no use afterwards."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Half:
    """The training or the test images, with what decodes them."""

    def __init__(
        self, images: AnnotatedImages, decoder: SquareDecoder, places: int, size: int, device: torch.device
    ) -> None:
        self.images = images
        self._decoder = decoder
        self._targets = Targets.of(images, size=size, places=places).to(device)
        # One for all passes over the images: memory that was used in one stream serves no other.
        self._beside = making_stream(device)

    def batches(self, choices: Iterator[NDArray[np.int64]]) -> Iterator[DetectionBatch]:
        """Yield a batch for each choice of images; the decoder asks for choices ahead of time."""
        asked: list[NDArray[np.int64]] = []

        def noted() -> Iterator[NDArray[np.int64]]:
            for chosen in choices:
                asked.append(chosen)
                yield chosen

        for images in made_beside(self._decoder.batches(self.images.paths, noted()), self._beside):
            yield DetectionBatch(images=images, targets=self._targets.of_images(asked.pop(0)))


def _decoder(settings: DetectionSettings, batch_size: int, device: torch.device) -> SquareDecoder:
    square_format = SquareFormat(
        size=settings.image_size,
        mean=settings.mean,
        std=settings.std,
        batch_size=batch_size,
        threads=settings.decode_threads or own_cores(),
    )
    installed = dali_is_installed()
    if settings.loader == "dali" and not installed:
        raise UserError(
            "The loader is to be dali, but NVIDIA DALI is not installed",
            mend="Install it with launch/setup --dali, or take the loader torchvision.",
        )
    if settings.loader == "torchvision" or not installed:
        return PillowSquares(square_format, device)
    decoder: SquareDecoder = importlib.import_module("resist_hvd.data.detection.dali_squares").DaliSquares(
        square_format, device
    )
    return decoder
