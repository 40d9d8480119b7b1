"""A run as it stands: what it is made of, how long it is, and how far it has come."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from resist_hvd import data
from resist_hvd.comm.world import World
from resist_hvd.data.source import DataSource, Shard
from resist_hvd.methods.base import Method, Setup
from resist_hvd.methods.registry import method_of
from resist_hvd.nets import families
from resist_hvd.seeds import derive
from resist_hvd.settings.run import Settings
from resist_hvd.tasks.base import Task
from resist_hvd.tasks.registry import task_of
from resist_hvd.training import arithmetic
from resist_hvd.training.claim import Claim
from resist_hvd.training.memory import TrainingMemory
from resist_hvd.training.optim import make_state


@dataclass
class Progress:
    """Progress of a run; a checkpoint's manifest holds it.

    Seconds are of training alone, the mean over workers; bytes are payload sent, summed over workers. `overlap` is what
    `--overlap auto` has chosen, None before that. `accuracy` is a detector's mean average precision; `anchors` are what
    it began with, widths and heights as shares of an image's.
    """

    round: int = 0
    samples: int = 0
    seconds: float = 0.0
    seconds_compute: float = 0.0
    seconds_data: float = 0.0
    seconds_sync: float = 0.0
    seconds_hidden: float = 0.0
    bytes_sent: int = 0
    accuracy: float | None = None
    best_accuracy: float | None = None
    evaluated_round: int = -1
    overlap: int | None = None
    anchors: list[list[float]] | None = None


@dataclass(kw_only=True)
class Training:
    """A method at work, in whoever's loop.

    Attributes:
        progress: how far it has come.
        stop_signal: the signal by which any rank was told to stop, 0 if none was: as all ranks agreed on last.
    """

    world: World
    method: Method
    progress: Progress = field(default_factory=Progress)
    stop_signal: int = 0

    def ends_with(self, iterations: int) -> bool:
        """Return whether these local iterations are the last that this method makes, as far as anyone knows."""
        return False


@dataclass(kw_only=True)
class Run(Training):
    """Everything that our loop works with.

    Attributes:
        folder: the run's folder; rank 0 writes it.
        claim: rank 0's hold on it, None on other ranks.
    """

    settings: Settings
    source: DataSource
    folder: Path
    claim: Claim | None = None

    @property
    def overlap(self) -> int:
        """T, the steps beside a synchronisation, as far as it is known: 0 while `auto` measures."""
        return overlap_of(self.settings, self.progress)

    @cached_property
    def task(self) -> Task:
        """The task that the network learns; anchors that it has found are noted in the progress, for who resumes."""
        settings, source, progress = self.settings, self.source, self.progress
        task = task_of(
            settings.task_name,
            settings.task,
            label_smoothing=settings.optim.label_smoothing,
            classes=source.spec.classes,
            image_size=source.spec.image_size,
            object_sizes=source.object_sizes,
            # A head that was trained by some anchors is of no use with those of boxes that have changed since.
            anchors=progress.anchors if settings.task.anchors == "auto" else None,
            device=self.world.device,
        )
        progress.anchors = task.description().get("anchors")
        return task

    @cached_property
    def memory(self) -> TrainingMemory:
        """This worker's memory."""
        return TrainingMemory(self.world.device, graphs=self.settings.cuda_graphs)

    @property
    def batch(self) -> int:
        """Images of one local iteration, summed over workers."""
        return self.settings.data.batch_size * self.world.size

    @property
    def target(self) -> int:
        """Images of the whole run, summed over workers, as the paper counts epochs.

        A whole number: 1.1 times 50,000 is 55000.00000000001 to a computer, and must take no iteration more for it.
        """
        return max(1, round(self.settings.epochs * self.source.spec.train_size))

    @property
    def iterations_left(self) -> int:
        """Local iterations, each worker's, until the target is reached."""
        return max(0, -((self.progress.samples - self.target) // self.batch))

    @property
    def finished(self) -> bool:
        """True once all iterations are done, or `max_rounds`."""
        reached = self.settings.max_rounds is not None and self.progress.round >= self.settings.max_rounds
        return reached or self.iterations_left == 0

    def iterations_of_round(self) -> int:
        """Return how many local iterations the round that begins now has: l, or what is left."""
        return min(self.settings.local_iterations, self.iterations_left)

    def ends_with(self, iterations: int) -> bool:
        """Return whether these local iterations are the last of all epochs, or of a warm-up.

        `max_rounds` does not count: whoever goes on from there goes on as if there had been no end.
        """
        after = self.progress.samples + iterations * self.batch
        return after >= self.target or self.method.hands_over(after)

    def rounds(self) -> int:
        """Return how many rounds the whole run will have had at its end."""
        left = -(-self.iterations_left // self.settings.local_iterations)
        return min(self.progress.round + left, self.settings.max_rounds or sys.maxsize)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes compute with the precision asked for."""
        return arithmetic.autocast(self.settings.precision, self.world.device)


def overlap_of(settings: Settings, progress: Progress) -> int:
    """Return T, the steps beside a synchronisation, of a run that has come so far; 0 where it is still to be chosen."""
    return progress.overlap or 0 if settings.overlap == "auto" else settings.overlap


def method_setup(settings: Settings, source: DataSource, world: World, progress: Progress | None = None) -> Setup:
    """Return what the run's method is made from.

    Args:
        settings: the run's.
        source: the data.
        world: all workers.
        progress: how far the run has come, at its beginning by default; one that goes on needs no file of weights.

    Raises:
        UserError: the network cannot be made, or not be dealt out.
    """
    spec, progress = source.spec, progress or Progress()
    model = settings.model if progress.round == 0 else replace(settings.model, weights=None)
    network = families.chosen(
        model,
        channels=spec.channels,
        image_size=spec.image_size,
        classes=len(spec.classes),
        anchors=settings.task.anchors_in_a_cell if settings.task_name == "detection" else None,
    )
    return Setup(
        network=network,
        world=world,
        seed=settings.seed,
        min_blocks=settings.min_blocks,
        momentum=settings.momentum,
        scale_activations=settings.scale_activations,
        overlap=overlap_of(settings, progress) > 0,
        outer_momentum=settings.outer_momentum,
        outer_momentum_blocks=settings.outer_momentum_blocks,
        keep_filters=settings.keep_filters,
        optimizer_state=partial(make_state, settings=settings.optim),
        exchange=settings.exchange,
        warmup_samples=round(settings.warmup_epochs * spec.train_size),
    )


def load_source(settings: Settings, world: World) -> DataSource:
    """Return this worker's share of a run's data; all ranks call it together.

    Raises:
        UserError: the data are missing, damaged, too large or too few.
    """
    return data.load(
        settings.data,
        shard=Shard(rank=world.rank, size=world.size),
        seed=settings.seed,
        device=world.device,
        share=world.once_a_host,
        cores=world.cores,
    )


def begin(
    settings: Settings, world: World, source: DataSource, folder: Path | None = None, progress: Progress | None = None
) -> Run:
    """Return a run at its beginning, or where its progress says, with initial weights; all ranks call it together.

    Args:
        settings: the run's.
        world: all workers.
        source: the data.
        folder: the run's; None for one that writes nothing.
        progress: how far it has come.

    Raises:
        UserError: on every rank, where the network cannot be made or dealt out, or would train nothing.
    """
    progress = progress or Progress()
    with world.agree("making the network"):
        setup = method_setup(settings, source, world, progress)
    seed = world.broadcast_seed(derive(settings.seed, "round", progress.round))
    method = method_of(settings.method).begin(setup, seed=seed, samples=progress.samples)
    return Run(
        settings=settings,
        world=world,
        source=source,
        method=method,
        folder=folder or Path(os.devnull),
        progress=progress,
    )
