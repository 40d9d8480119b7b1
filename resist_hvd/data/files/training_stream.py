"""A worker's endless training batches, made in advance, from wherever the run stands."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, Generic, Protocol, Self, TypeVar

from resist_hvd.data.files.ahead import Ahead
from resist_hvd.data.side_stream import SideStream
from resist_hvd.data.source import Batch, Shard


class Plan(Protocol):
    """One worker's training images: which they are follows from the number of samples drawn before."""

    def for_shard(self, shard: Shard) -> Self:
        """The same of another worker."""

    def after(self, samples_drawn: int) -> int:
        """Number of samples that all workers have drawn one batch later."""


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
        plan = self._plan.for_shard(shard)
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
