"""Interface of all data sets: endless training batches, a test set, a calibration set.

The training loop and the evaluation know these four classes and nothing of where images come from. A source reads
no rank from anywhere: it is told its `Shard` when it is made.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Images and labels, both on the source's device. Images are [B, C, H, W], normalised, and channels_last in memory when
C > 1; they are float32 unless the settings ask for another type. Labels are int64 [B], each the number of a class in
`DataSpec.classes`."""


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

    Batches are normalised by `mean` and `std`, each channel's, of pixel values from 0 to 255.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    train_size: int
    test_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


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


class TrainStream(Iterator[Batch], ABC):
    """One worker's endless training batches, which rounds and epochs do not interrupt.

    An epoch is one pass over the training set, summed over workers: the workers share out one permutation of it. Every
    batch is full, so where the numbers do not divide, a batch takes its last images from the next epoch.
    """

    @abstractmethod
    def __next__(self) -> Batch:
        """This worker's next batch: always `batch_size` images."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The position, as values that JSON can hold. It comes back exactly on the same number of workers."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> str | None:
        """Go to a position that `state` returned.

        Returns:
            None where the stream goes on exactly as it would have. A sentence for the user where it cannot, as on
            another number of workers: it then goes on at the same number of samples drawn.

        Raises:
            UserError: the state is damaged or not of this kind of stream.
        """

    @property
    @abstractmethod
    def samples_drawn(self) -> int:
        """Images drawn since the run's start, summed over workers."""


class DataSource(ABC):
    """A training set, a test set and a calibration set, as one worker sees them.

    Attributes:
        spec: what the data are.
        extra_tests: further test sets.
        remarks: sentences for the user, on files that were left out and the like; the same on every worker.
    """

    spec: DataSpec
    extra_tests: tuple[ExtraTest, ...] = ()
    loader_name: str = ""
    """Name of the loader that decodes its images as they are needed; empty where they lie in memory."""
    remarks: tuple[str, ...] = ()

    @abstractmethod
    def train(self) -> TrainStream:
        """This worker's training stream; every call returns the same one."""

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
