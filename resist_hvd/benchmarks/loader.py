"""`bench loader`: images a second of this project's ImageNet loader, against bare DALI and torchvision's DataLoader."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from resist_hvd import data
from resist_hvd.benchmarks.table import paired_ratio, show_rates
from resist_hvd.comm.devices import DeviceName
from resist_hvd.comm.world import World
from resist_hvd.config import Precision, Settings
from resist_hvd.data.baseline import bare_dali, threads, torchvision_loader
from resist_hvd.data.settings import DataSettings
from resist_hvd.data.source import Shard
from resist_hvd.methods import registry
from resist_hvd.models import ModelSettings
from resist_hvd.seeds import derive
from resist_hvd.training.arithmetic import with_precision
from resist_hvd.training.loop import LocalTraining
from resist_hvd.training.run import Run, method_setup
from resist_hvd.units import counted

OURS, DALI, TORCHVISION = "this loader", "bare DALI, the same operators", "torchvision's DataLoader"


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """Time an ImageNet loader, and how long a training step waits for it."""

    batches: int = 24
    """Batches in one pass."""

    passes: int = 7
    """How often each is measured, in turn."""

    steps: int = 4
    """Training steps that are timed with the loader beside them; 0 leaves them out."""

    min_blocks: int = 5
    """m, the fewest blocks of the sub-network that these steps train."""

    precision: Precision = "fp32"
    """What these steps compute convolutions in; auto as in training."""

    compile: bool = False
    """Compile the network that these steps train with torch.compile."""

    device: DeviceName = "auto"
    """What to compute on; auto is cuda where there is a GPU."""

    seed: int = 1
    """Order, windows and weights come from it."""

    model: ModelSettings = field(
        default_factory=lambda: ModelSettings(name="preact_resnet50", block="bottleneck", stem="imagenet")
    )
    data: DataSettings = field(
        default_factory=lambda: DataSettings(name="imagenet", root=Path("imagenet"), batch_size=64)
    )

    def __post_init__(self) -> None:
        for name, least in {"batches": 1, "passes": 1, "steps": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name} is {getattr(self, name)}; give {least} or more")
        if self.data.name != "imagenet":
            raise ValueError(f"--data.name is {self.data.name}, which has no loader to be timed; leave it out")
        _ = self.training  # settings that do not go together are told at once

    @property
    def ready(self) -> int:
        """Batches that the loader has made before they are asked for, and the one that it is at."""
        return self.data.prefetch + 1

    @property
    def training(self) -> Settings:
        """The settings of a run whose steps are timed."""
        return Settings(
            min_blocks=self.min_blocks,
            local_iterations=max(self.ready, self.steps),
            seed=self.seed,
            precision=self.precision,
            compile=self.compile,
            epochs=1e9,
            model=self.model,
            data=self.data,
        )


def run(settings: LoaderSettings, world: World) -> float:
    """Measure, print a table from rank 0, and return the ratio to bare DALI; all ranks call it together."""
    own = settings.data
    shard = Shard(rank=world.rank, size=world.size)
    with world.agree("loading the data"):
        source = data.load(own, shard=shard, seed=settings.seed, device=world.device, share=world.once_a_host)
    with source:
        candidates: dict[str, Iterator[Any]] = {
            DALI: bare_dali(own, shard=shard, seed=settings.seed, device=world.device),
            OURS: source.train(),
            TORCHVISION: torchvision_loader(own, seed=settings.seed, device=world.device),
        }
        with world.agree("making first batches"):
            settle = {name: first_batches(batches, own) for name, batches in candidates.items()}
        rates: dict[str, list[float]] = {name: [] for name in candidates}
        for number in range(settings.passes):
            # There and back, so that none gains by what comes before it.
            order = list(candidates.items())
            for name, batches in reversed(order) if number % 2 else order:
                world.barrier()
                rates[name].append(images_a_second(batches, settings, world.device, settle[name]))
        del candidates, order, batches
        beside = training_beside(settings, world, source) if settings.steps else ""
    if world.is_first:
        cores = f"{world.cores:.3g} cores for rank 0"
        what = f"{threads(own)} threads or processes, {cores}, {counted(world.size, 'rank')}, {world.device.type}"
        show_rates(
            f"Training batches of {own.batch_size} images of {own.size} x {own.size}: {what}",
            rates,
            "images/s",
            f"{counted(settings.passes, 'pass', 'passes')} in turn, each of "
            f"{counted(settings.batches, 'batch', 'batches')}; rank 0's. This loader against "
            f"torchvision's: {paired_ratio(rates[OURS], rates[TORCHVISION]):.2f}.{beside}",
        )
    return paired_ratio(rates[OURS], rates[DALI])


def in_advance(settings: DataSettings) -> int:
    """Return how many batches a loader may have ready before it is asked: PyTorch's has two for each process."""
    return max(settings.prefetch, 2 * threads(settings)) + 1


def first_batches(batches: Iterator[Any], settings: DataSettings) -> float:
    """Draw a loader's first batches; return the seconds in which it then surely has as many ready as it can."""
    next(batches)
    began = perf_counter()
    for _ in range(in_advance(settings)):
        next(batches)
    return max(0.5, 2 * (perf_counter() - began))


def images_a_second(batches: Iterator[Any], settings: LoaderSettings, device: torch.device, settle: float) -> float:
    """Return the images that a loader decodes a second once none of those from before are left.

    What it has made in advance is drawn first, untimed. Afterwards it is left alone until it has again what it may
    have, so that it does not work on while another one is measured.
    """
    for _ in range(in_advance(settings.data)):
        next(batches)
    began = perf_counter()
    for _ in range(settings.batches):
        next(batches)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elapsed = perf_counter() - began
    time.sleep(settle)
    return settings.batches * settings.data.batch_size / elapsed


def training_beside(settings: LoaderSettings, world: World, source: data.DataSource) -> str:
    """Return in a sentence how fast training steps go with the loader beside them, and how long they wait for it.

    They follow one another as in training: a GPU is waited for once, at the end. Before them come as many as take what
    the loader has ready, so that it must keep up.
    """
    training, ready = with_precision(settings.training, world), settings.ready
    method = registry.make("resist", method_setup(training, source, world), seed=derive(settings.seed, "round", 0))
    local = LocalTraining(Run(training, world, source, method, Path()))
    local.train(ready)
    local.clock.lap()
    before = world.stopwatch.seconds["data"]
    local.train(settings.steps)
    elapsed = local.clock.lap()
    share = 100 * (world.stopwatch.seconds["data"] - before) / elapsed
    rate, step = settings.steps * settings.data.batch_size / elapsed, 1e3 * elapsed / settings.steps
    parameters = f"{method.subnet.parameters_flat.numel():,} parameters ({training.precision})"
    return (
        f" Beside training {parameters}: {rate:.1f} images/s, a step of {step:.0f} ms "
        f"(mean of {settings.steps}), of which {share:.2f} % wait for data."
    )
