"""Interface of all data sets: endless training batches, a test set, a calibration set.

The training loop and the evaluation know these classes and nothing of where images come from. A source reads no rank
from anywhere: it is told its `Shard` when it is made. The one position in the data is the number of samples that the
run has trained on, which the run itself counts: a source keeps none that must be saved.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resist_hvd.data.preprocess import Preprocess
from resist_hvd.errors import UserError

Batch = tuple[Tensor, Tensor]
"""Images and labels, both on the source's device. Images are [B, C, H, W], normalised, and channels_last in memory when
C > 1; they are float32 unless the settings ask for another type. Labels are int64 [B], each the number of a class in
`DataSpec.classes`; of images with boxes they are float32 [B, most, 6], as `tasks.objects.packed` has them."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A worker's share of the data: that of worker `rank` of `size` workers."""

    rank: int
    size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(
                f"a shard's rank must be from 0 to {self.size - 1} for {self.size} workers, not {self.rank}"
            )


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Facts of a data set, for the model and for reports; sizes count images over all workers.

    Batches are normalised by `mean` and `std`, each channel's, of pixel values from 0 to 255. `test_resize` is the
    pixels that the shorter side of a test image is scaled to, where that is how it is cut out, and `stretched` whether
    all of it is scaled to the size (see `Preprocess`).
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    train_size: int
    test_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_resize: int | None = None
    stretched: bool = False

    @property
    def preprocess(self) -> Preprocess:
        """Preparation of a single image as the test set's are prepared."""
        names = (field.name for field in fields(Preprocess))
        return Preprocess(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class ExtraTest:
    """A further test set of the same classes, evaluated by itself once training is done.

    Attributes:
        name: what reports call it.
        size: images, over all workers.
        batches: yields a worker's share, as `DataSource.test` does.
    """

    name: str
    size: int
    batches: Callable[[Shard], Iterator[Batch]]


class DataSource(ABC):
    """A training set, a test set and a calibration set, as one worker sees them.

    Attributes:
        spec: what the data are.
        extra_tests: further test sets.
        remarks: sentences for the user, on files that were left out and the like; the same on every worker.
        object_sizes: float32 [objects, 2], the width and height of each object to train on, as shares of its image's;
            None where images have no boxes.
    """

    spec: DataSpec
    extra_tests: tuple[ExtraTest, ...] = ()
    loader_name: str = ""
    """Name of the loader that decodes its images as they are needed; empty where they lie in memory."""
    remarks: tuple[str, ...] = ()
    object_sizes: NDArray[np.float32] | None = None

    @abstractmethod
    def train(self, samples: int = 0, shard: Shard | None = None) -> Iterator[Batch]:
        """This worker's endless training batches, or those of `shard`, from where all have drawn so many samples.

        An epoch is one pass over the training set, summed over workers: they share out one permutation of it. Every
        batch is full, so where the numbers do not divide, a batch takes its last images from the next epoch. Neither
        the number of workers nor the batch size changes which sample has which number: another number of workers goes
        on with the same order, no image left out and none repeated within the epoch.

        A source may have one such iterator at a time: another call goes on with it, where it stands at `samples`, or
        ends it.
        """

    @abstractmethod
    def test(self, shard: Shard | None = None) -> Iterator[Batch]:
        """This worker's share of the test set, or that of `shard`: each image once, the last batch may be smaller.

        Over all shards of a size, each test image comes exactly once. A share is empty where images are too few.
        """

    @abstractmethod
    def calibration(self, shard: Shard | None = None) -> Iterator[Batch]:
        """The same of the calibration set: a fixed choice of training images, without augmentation."""

    def broken_files(self) -> dict[str, str]:
        """Faults of the files that this worker passed over because they were broken, by their paths."""
        return {}

    def close(self) -> None:
        """Let go of memory, files and threads; the source is of no use afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def check_one_batch(name: str, *, train_size: int, batch_size: int, shard: Shard, where: str) -> None:
    """Check that there are as many training images as all workers draw at once.

    Raises:
        UserError: there are fewer.
    """
    drawn_at_once = batch_size * shard.size
    if train_size < drawn_at_once:
        raise UserError(
            f"{name} has {train_size} training images, fewer than the {drawn_at_once} that "
            f"{shard.size} workers draw at once in batches of {batch_size}",
            mend="Give a smaller --data.batch_size, fewer workers, or more images.",
            where=where,
        )
