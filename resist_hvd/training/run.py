"""A run as it stands: what it is made of, how long it is, and how far it has come."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from resist_hvd.comm.world import World
from resist_hvd.data.source import DataSource
from resist_hvd.methods.base import Method, Setup
from resist_hvd.nets import Architecture
from resist_hvd.settings.run import Settings
from resist_hvd.training.claim import Claim
from resist_hvd.training.memory import TrainingMemory


@dataclass
class Progress:
    """Progress of a run; a checkpoint's manifest holds it.

    Seconds are of training alone, the mean over workers; bytes are payload sent, summed over workers.
    """

    round: int = 0
    samples: int = 0
    seconds: float = 0.0
    seconds_compute: float = 0.0
    seconds_data: float = 0.0
    seconds_sync: float = 0.0
    bytes_sent: int = 0
    accuracy: float | None = None
    best_accuracy: float | None = None
    evaluated_round: int = -1


@dataclass
class Run:
    """Everything that the loop works with.

    Attributes:
        folder: the run's folder; rank 0 writes it.
        claim: rank 0's hold on it, None on other ranks.
        stop_signal: the signal by which any rank was told to stop, 0 if none was: as all ranks agreed on last.
    """

    settings: Settings
    world: World
    source: DataSource
    method: Method
    folder: Path
    progress: Progress = field(default_factory=Progress)
    claim: Claim | None = None
    stop_signal: int = 0

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
        """Whether all iterations are done, or `max_rounds`."""
        reached = self.settings.max_rounds is not None and self.progress.round >= self.settings.max_rounds
        return reached or self.iterations_left == 0

    def iterations_of_round(self) -> int:
        """Return how many local iterations the round that begins now has: l, or what is left."""
        return min(self.settings.local_iterations, self.iterations_left)

    def rounds(self) -> int:
        """Return how many rounds the whole run will have had at its end."""
        left = -(-self.iterations_left // self.settings.local_iterations)
        return min(self.progress.round + left, self.settings.max_rounds or sys.maxsize)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes compute with the precision asked for.

        Autocast's cache of converted weights is off. It knows a weight by its tensor, so it does not notice a change in
        place: a block that is lent would compute with the weights of the one that was lent before it. Training converts
        each weight once in a step anyway.
        """
        if self.settings.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16, cache_enabled=False)


Autocast = Callable[[], AbstractContextManager[Any]]


def method_setup(settings: Settings, source: DataSource, world: World) -> Setup:
    """Return what the run's method is made from."""
    architecture = Architecture.of(settings.model, channels=source.spec.channels, classes=len(source.spec.classes))
    return Setup(
        architecture=architecture,
        world=world,
        seed=settings.seed,
        min_blocks=settings.min_blocks,
        momentum=settings.momentum,
        scale_activations=settings.scale_activations,
        zero_residual=settings.model.zero_init_residual,
    )
