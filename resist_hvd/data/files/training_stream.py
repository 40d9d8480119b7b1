"""A worker's endless training batches, made in advance, from wherever the run stands."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from resist_hvd.data.files.ahead import Ahead
from resist_hvd.data.order import EpochOrder
from resist_hvd.data.side_stream import SideStream
from resist_hvd.data.source import Batch, Shard


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One worker's training images: a function of the number of samples that all workers have drawn before.

    Attributes:
        order: which image each sample is.
        shard: the worker.
        batch_size: images of one worker's batch.
    """

    order: EpochOrder
    shard: Shard
    batch_size: int

    def first(self, samples_drawn: int) -> int:
        """Number of the first sample of this worker's batch."""
        return samples_drawn + self.shard.rank * self.batch_size

    def after(self, samples_drawn: int) -> int:
        """Number of samples that all workers have drawn one batch later."""
        return samples_drawn + self.shard.size * self.batch_size


P = TypeVar("P", bound=Plan)


class TrainingStream(Generic[P]):
    """One iterator of training batches at a time: another call goes on with it, where it stands there, or ends it.

    Args:
        plan: this worker's.
        made: makes batches by a plan, from a number of samples on.
        beside: the stream of a GPU in which they are made.
    """

    def __init__(self, plan: P, made: Callable[[P, int], Iterator[Batch]], beside: SideStream) -> None:
        self._plan, self._made, self._beside = plan, made, beside
        self._batches: Generator[Batch, Any, None] | None = None
        self._next_sample = 0

    def at(self, samples: int, shard: Shard) -> Iterator[Batch]:
        """A worker's batches, from where all workers have drawn so many samples."""
        plan = replace(self._plan, shard=shard)
        if self._batches is None or samples != self._next_sample or plan != self._plan:
            self.close()
            self._plan = plan
            self._batches, self._next_sample = self._from(samples), samples
        return self._batches

    def _from(self, samples: int) -> Generator[Batch, Any, None]:
        plan = self._plan
        with closing(Ahead(self._made(plan, samples), self._beside)) as batches:
            for batch in batches:
                self._next_sample = plan.after(self._next_sample)
                yield batch

    def close(self) -> None:
        """Stop making batches in advance."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None
