"""A data source whose images all lie in the device's memory, for sets from a few images to some gigabytes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resist_hvd.data.images import BatchMaker, LabelledImages
from resist_hvd.data.order import EpochOrder, fixed_choice, sample_words
from resist_hvd.data.settings import DataSettings
from resist_hvd.data.source import Batch, DataSource, DataSpec, Shard, TrainStream
from resist_hvd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """What a reader of a data set returns: its two halves, its classes, and whether its images may be mirrored."""

    name: str
    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    mirrored: bool


class ResidentStream(TrainStream):
    """Training batches from memory; their order and augmentation are functions of the seed and the position alone.

    Since nothing depends on the number of workers or on the batch size but who draws a sample, another number of
    workers goes on with the same order of images, none left out and none repeated within the epoch.
    """

    def __init__(
        self, images: LabelledImages, maker: BatchMaker, *, shard: Shard, seed: int, batch_size: int, mirrored: bool
    ) -> None:
        self._maker = maker
        self._order = EpochOrder(len(images), seed)
        self._crop_choices = np.uint64(2 * images.padding + 1)
        self._mirrored = mirrored
        self._shard = shard
        self._seed = seed
        self._batch_size = batch_size
        self._samples_drawn = 0

    @property
    def samples_drawn(self) -> int:
        """Images drawn since the run's start, summed over workers."""
        return self._samples_drawn

    def __next__(self) -> Batch:
        first = self._samples_drawn + self._shard.rank * self._batch_size
        self._samples_drawn += self._shard.size * self._batch_size
        chosen = self._order.images(first, self._batch_size)
        words = sample_words(self._seed, first, self._batch_size)
        top, left = (words[:, :2] % self._crop_choices).astype(np.int64).T
        mirrored = (words[:, 2] % np.uint64(2)).astype(np.bool_) & self._mirrored
        return self._maker.augmented(chosen, top, left, mirrored)

    def state(self) -> dict[str, Any]:
        """The position, and the circumstances in which it means the same batches."""
        return {"samples_drawn": self._samples_drawn, **self._circumstances()}

    def _circumstances(self) -> dict[str, int]:
        """All that decides, beside the position, which images this worker draws."""
        return {
            "workers": self._shard.size,
            "batch_size": self._batch_size,
            "seed": self._seed,
            "train_size": self._order.size,
        }

    def load_state(self, state: dict[str, Any]) -> str | None:
        """Go to a position that `state` returned; a sentence where the batches will not be those of then."""
        circumstances = self._circumstances()
        expected = {"samples_drawn", *circumstances}
        if (
            set(state) != expected
            or not all(type(value) is int for value in state.values())
            or state["samples_drawn"] < 0
        ):
            raise UserError(
                f"The data position in the checkpoint cannot be read: {state}",
                mend="Resume from an older checkpoint, or start anew in another --output folder.",
            )
        self._samples_drawn = state["samples_drawn"]
        changed = [
            f"{name.replace('_', ' ')} {state[name]} is now {value}"
            for name, value in circumstances.items()
            if state[name] != value
        ]
        if not changed:
            return None
        return (
            f"The data go on at the same number of samples drawn, {self._samples_drawn}, but not with the batches of "
            f"the run that stopped: {', '.join(changed)}"
        )


class ResidentSource(DataSource):
    """Serves an `ImageSet` from the memory of `device`, normalised by its training images' exact mean and std.

    Raises:
        UserError: there are fewer training images than one batch of all workers.
    """

    def __init__(
        self, images: ImageSet, settings: DataSettings, *, shard: Shard, seed: int, device: torch.device
    ) -> None:
        _check_one_batch(images, settings, shard)
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
        self._shard = shard
        self._evaluation_batch_size = settings.test_batch_size
        train = images.train.to(device)
        self._train_maker = BatchMaker(train, mean=mean, std=std)
        self._test_maker = BatchMaker(images.test.to(device), mean=mean, std=std)
        self._calibration_images = fixed_choice(len(train), settings.calibration_images)
        self._stream = ResidentStream(
            train,
            self._train_maker,
            shard=shard,
            seed=seed,
            batch_size=settings.batch_size,
            mirrored=images.mirrored if settings.flip is None else settings.flip,
        )

    def train(self) -> ResidentStream:
        """This worker's training stream."""
        return self._stream

    def test(self, shard: Shard | None = None) -> Iterator[Batch]:
        """A share of the test set."""
        return self._share(self._test_maker, np.arange(self.spec.test_size), shard)

    def calibration(self, shard: Shard | None = None) -> Iterator[Batch]:
        """A share of the calibration set, the same images in every run on this training set."""
        return self._share(self._train_maker, self._calibration_images, shard)

    def _share(self, maker: BatchMaker, images: NDArray[np.int64], shard: Shard | None) -> Iterator[Batch]:
        shard = shard or self._shard
        # Every size-th image: images are often sorted by class, and so each share has some of all classes.
        own = images[shard.rank :: shard.size]
        for start in range(0, len(own), self._evaluation_batch_size):
            yield maker.plain(own[start : start + self._evaluation_batch_size])


def _check_one_batch(images: ImageSet, settings: DataSettings, shard: Shard) -> None:
    drawn_at_once = settings.batch_size * shard.size
    if len(images.train) < drawn_at_once:
        raise UserError(
            f"{images.name} has {len(images.train)} training images, fewer than the {drawn_at_once} that "
            f"{shard.size} workers draw at once in batches of {settings.batch_size}",
            mend="Give a smaller --data.batch_size, fewer workers, or more images.",
            where=str(settings.root) if settings.root else "",
        )
