"""A training stream's position, which is one number, and what is said where it no longer means the same batches."""

from abc import abstractmethod
from typing import Any

from resist_hvd.data.order import EpochOrder
from resist_hvd.data.source import Batch, Shard, TrainStream
from resist_hvd.errors import UserError


class Position:
    """Position of a worker's stream whose batches are functions of the seed and the position alone.

    Since nothing depends on the number of workers or on the batch size but who draws a sample, another number of
    workers goes on with the same order of images, none left out and none repeated within the epoch.

    Args:
        order: which image each sample is.
        shard: the worker.
        batch_size: images of one worker's batch.
    """

    def __init__(self, order: EpochOrder, *, shard: Shard, batch_size: int) -> None:
        self._order = order
        self._shard = shard
        self._batch_size = batch_size
        self._samples_drawn = 0

    @property
    def samples_drawn(self) -> int:
        """Images drawn since the run's start, summed over workers."""
        return self._samples_drawn

    def _advance(self) -> None:
        """Note that every worker has drawn a batch."""
        self._samples_drawn += self._shard.size * self._batch_size

    def state(self) -> dict[str, Any]:
        """The position, and the circumstances in which it means the same batches."""
        return {"samples_drawn": self._samples_drawn, **self._circumstances()}

    def _circumstances(self) -> dict[str, int]:
        """All that decides, beside the position, which images this worker draws."""
        return {
            "workers": self._shard.size,
            "batch_size": self._batch_size,
            "seed": self._order.seed,
            "train_size": self._order.size,
        }

    def load_state(self, state: dict[str, Any]) -> str | None:
        """Go to a position that `state` returned; a sentence where the batches will not be those of then.

        Raises:
            UserError: it is none that `state` returns.
        """
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


class NumberedStream(Position, TrainStream):
    """Training batches whose order and augmentation are functions of the seed and the position alone."""

    def __next__(self) -> Batch:
        batch = self.batch(self._samples_drawn)
        self._advance()
        return batch

    @abstractmethod
    def batch(self, samples_drawn: int) -> Batch:
        """This worker's batch once all workers have drawn so many samples."""


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
