"""A data source whose images all lie in the device's memory, for sets from a few images to some gigabytes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray

from resist_hvd.data.memory.images import BatchMaker, LabelledImages
from resist_hvd.data.order import EpochOrder, fixed_choice, sample_words
from resist_hvd.data.source import Batch, DataSource, DataSpec, ExtraTest, Shard, check_one_batch
from resist_hvd.settings.data import DataSettings


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A data set as a reader returns it: its images, its classes, and whether its images may be mirrored.

    Attributes:
        remarks: sentences for the user on what was left out.
        broken: what is wrong with each file that was passed over because it is broken, by its path.
    """

    name: str
    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    mirrored: bool
    extra_tests: Mapping[str, LabelledImages] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)


class ResidentSource(DataSource):
    """Serves an `ImageSet` from the memory of `device`, normalised by its training images' exact mean and std.

    Raises:
        UserError: there are fewer training images than one batch of all workers.
    """

    def __init__(
        self, images: ImageSet, settings: DataSettings, *, shard: Shard, seed: int, device: torch.device
    ) -> None:
        check_one_batch(
            images.name,
            train_size=len(images.train),
            batch_size=settings.batch_size,
            shard=shard,
            where=str(settings.root) if settings.root else "",
        )
        mean, std = images.train.channel_statistics()
        self.spec = DataSpec(
            name=images.name,
            classes=images.classes,
            channels=images.train.channels,
            image_size=images.train.image_size,
            train_size=len(images.train),
            test_size=len(images.test),
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
        )
        broken = [f"passed over: the image file {fault} [{path}]" for path, fault in sorted(images.broken.items())]
        self.remarks = (*images.remarks, *broken)
        self._broken = images.broken
        self._shard = shard
        self._evaluation_batch_size = settings.test_batch_size
        train = images.train.to(device)
        self._train_maker = BatchMaker(train, mean=mean, std=std)
        self._test_maker = BatchMaker(images.test.to(device), mean=mean, std=std)
        self.extra_tests = tuple(
            self._extra_test(name, BatchMaker(extra.to(device), mean=mean, std=std), len(extra))
            for name, extra in images.extra_tests.items()
        )
        self._calibration_images = fixed_choice(len(train), settings.calibration_images)
        self._order = EpochOrder(len(train), seed)
        self._batch_size = settings.batch_size
        self._crop_choices = np.uint64(2 * train.padding + 1)
        self._mirrored = images.mirrored if settings.flip is None else settings.flip

    def train(self, samples: int = 0, shard: Shard | None = None) -> Iterator[Batch]:
        """A worker's training batches, from where all workers together have drawn so many samples."""
        shard = shard or self._shard
        for drawn in count(samples, shard.size * self._batch_size):
            yield self._augmented(drawn + shard.rank * self._batch_size)

    def _augmented(self, first: int) -> Batch:
        """The training batch whose first sample has this number."""
        words = sample_words(self._order.seed, first, self._batch_size)
        top, left = (words[:, :2] % self._crop_choices).astype(np.int64).T
        mirrored = (words[:, 2] % np.uint64(2)).astype(np.bool_) & self._mirrored
        return self._train_maker.augmented(self._order.images(first, self._batch_size), top, left, mirrored)

    def test(self, shard: Shard | None = None) -> Iterator[Batch]:
        """A share of the test set."""
        return self._share(self._test_maker, np.arange(self.spec.test_size), shard)

    def calibration(self, shard: Shard | None = None) -> Iterator[Batch]:
        """A share of the calibration set, the same images in every run on this training set."""
        return self._share(self._train_maker, self._calibration_images, shard)

    def broken_files(self) -> dict[str, str]:
        """Faults of the files that were passed over, by their paths."""
        return dict(self._broken)

    def _extra_test(self, name: str, maker: BatchMaker, size: int) -> ExtraTest:
        return ExtraTest(name=name, size=size, batches=lambda shard: self._share(maker, np.arange(size), shard))

    def _share(self, maker: BatchMaker, images: NDArray[np.int64], shard: Shard | None) -> Iterator[Batch]:
        shard = shard or self._shard
        # Every size-th image: images are often sorted by class, and so each share has some of all classes.
        own = images[shard.rank :: shard.size]
        for start in range(0, len(own), self._evaluation_batch_size):
            yield maker.plain(own[start : start + self._evaluation_batch_size])
