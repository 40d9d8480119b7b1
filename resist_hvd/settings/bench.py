"""Settings of the benchmarks: the flags of `python -m resist_hvd.bench NAME`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar

from resist_hvd.settings.data import DataSettings
from resist_hvd.settings.group import Bound, Count, Natural, Positive
from resist_hvd.settings.rows import GPIPE, Row, usual_rows
from resist_hvd.settings.run import Settings
from resist_hvd.units import counted

STEPS_A_BATCH_READY = 8
"""Steps that `loader` times on a GPU for each batch that may be ready: those are few of them then."""

Counts = Annotated[tuple[int, ...], Bound("numbers of at least 1", lambda numbers: all(n >= 1 for n in numbers))]
Several = Annotated[int, Bound("2 or more", lambda number: number >= 2)]
Loads = Annotated[tuple[float, ...], Bound("shares from 0 to 1", lambda shares: all(0 <= x <= 1 for x in shares))]


@dataclass(frozen=True, kw_only=True)
class SyncSettings(Settings):
    """Time ResIST's synchronisation: trunk average, block averages and moves."""

    TAKES: ClassVar = ("min_blocks", "seed", "device", "model", "exchange")
    BASE: ClassVar[dict[str, Any]] = {"model.final_norm": False}

    repeats: Count = 20
    """Number of times that each is measured, in turn."""


@dataclass(frozen=True, kw_only=True)
class LinkSettings(Settings):
    """Time ResIST's synchronisation beside what links carry: trunk, blocks, both."""

    TAKES: ClassVar = ("min_blocks", "seed", "device", "model", "exchange")
    BASE: ClassVar[dict[str, Any]] = {"min_blocks": 6, "model.sections": "1,1,13,1", "model.width_factor": 0.25}

    rate: Positive | None = None
    """Raw rate of each host's link in Mbit/s, both ways: the time that its payload takes at least is then shown."""

    repeats: Count = 10
    """Number of times that each is measured, in turn."""

    json: Path | None = None
    """Write every measurement into this file as JSON."""


@dataclass(frozen=True, kw_only=True)
class StepSettings(Settings):
    """Time a local step of ResIST: data, forward, backward, update.

    One rank trains the whole network. Images are a data set's, or, with --image_size, noise in memory.
    """

    TAKES: ClassVar = (
        "min_blocks",
        "seed",
        "precision",
        "compile",
        "cuda_graphs",
        "device",
        "model",
        "data",
        "optim",
    )
    BASE: ClassVar[dict[str, Any]] = {"model.sections": "1,1,13,1", "model.width_factor": 0.25, "data.batch_size": 64}

    image_size: Count | None = None
    """Train on noise of this height and width in pixels, on the device, instead of a data set: no reader is in the
    way."""

    channels: Count = 3
    """Channels of this noise."""

    classes: Several = 1000
    """Classes of this noise."""

    steps: Count = 5
    """Steps in one measurement."""

    repeats: Count = 15
    """How often each is measured, in turn; as many steps as in one measurement precede them, and do not count."""

    json: Path | None = None
    """Write every measurement into this file as JSON."""

    @property
    def reads_images(self) -> bool:
        """Noise needs no folder."""
        return self.image_size is None

    @property
    def training(self) -> Settings:
        """The settings of a run whose steps these are."""
        return replace(self, epochs=1e9)


@dataclass(frozen=True, kw_only=True)
class LoaderSettings(Settings):
    """Time an ImageNet loader, and how long a training step waits for it."""

    TAKES: ClassVar = ("min_blocks", "seed", "precision", "compile", "device", "model", "data")
    BASE: ClassVar[dict[str, Any]] = {
        "model.name": "preact_resnet50",
        "model.block": "bottleneck",
        "model.stem": "imagenet",
        "data.name": "imagenet",
        "data.root": Path("imagenet"),
        "data.batch_size": 64,
    }

    batches: Count = 24
    """Batches in one pass."""

    passes: Count = 7
    """How often each is measured, in turn."""

    steps: Natural = 4
    """Training steps that are timed with the loader beside them, on a GPU at least eight for each batch that the loader
    may have ready; 0 leaves them out."""

    threads: Counts = ()
    """Numbers of decoding threads to try one after the other, as [4,8,16]. Default: --data.decode_threads alone."""

    hardware_load: Loads = ()
    """Shares of a GPU's JPEG hardware to try with each of them, as [0.65,0.8,0.95]. Default: --data.dali.hardware_load
    alone."""

    def check(self) -> None:
        """Refuse a set that has no loader."""
        super().check()
        if self.data.name != "imagenet":
            raise ValueError(f"--data.name is {self.data.name}, which has no loader to be timed; leave it out")

    @property
    def ready(self) -> int:
        """Batches that the loader has made before they are asked for, and the one that it is at."""
        return self.data.prefetch + 1

    def timed_steps(self, *, gpu: bool) -> int:
        """Return how many steps are timed: on a GPU so many that few of them take what was ready before."""
        return max(self.steps, STEPS_A_BATCH_READY * self.ready) if gpu else self.steps

    @property
    def training(self) -> Settings:
        """The settings of a run whose steps are timed."""
        return replace(self, local_iterations=max(self.ready, self.steps), epochs=1e9)

    def ways(self, cores: float) -> dict[str, DataSettings]:
        """Return the ways of loading that are timed, by what tells them apart: nothing where there is one.

        Args:
            cores: that this rank has.
        """
        own = self.data.on_cores(cores)
        tried = product(self.threads or (own.threads,), self.hardware_load or (own.dali.hardware_load,))
        return {
            self._name(threads, load): replace(own, decode_threads=threads, dali=replace(own.dali, hardware_load=load))
            for threads, load in tried
        }

    def _name(self, threads: int, load: float) -> str:
        parts = [counted(threads, "thread")] if self.threads else []
        return ", ".join([*parts, f"hardware load {load:g}"] if self.hardware_load else parts)


@dataclass(frozen=True, kw_only=True)
class CodecSettings(Settings):
    """Time each codec's encoding and decoding beside a copy in memory.

    On one thread of each rank.
    """

    TAKES: ClassVar = ("seed", "device")
    BASE: ClassVar[dict[str, Any]] = {}

    numbers: Count = 2**24
    """Numbers that are encoded in one measurement."""

    repeats: Count = 10
    """Number of times that each is measured, in turn."""


@dataclass(frozen=True, kw_only=True)
class CompareSettings(Settings):
    """Train by ResIST and by what one would use instead, in turn.

    Local SGD and data-parallel training on Horovod, PyTorch's DistributedDataParallel, its PostLocalSGDOptimizer and
    its GPipe.
    """

    TAKES: ClassVar = ("local_iterations", "min_blocks", "seed", "device", "model", "data", "optim")
    BASE: ClassVar[dict[str, Any]] = {"local_iterations": 10, "model.sections": "1,1,13,1", "model.width_factor": 0.25}

    rows: str | None = None
    """Ways of training to compare, with commas between: resist, local-sgd, data-parallel, federated-dropout,
    pytorch-ddp, pytorch-post-local-sgd, gpipe. What our methods do otherwise follows the name: +overlapT, T local
    iterations beside a synchronisation; +CODEC, as +int8, what is sent; +CODEC/CODEC, as +int4/int8, the trunk's and
    the blocks'; +keepF, as +keep0.25, a part. The first is what others are compared with. Default: all of them but
    federated-dropout and gpipe, ResIST and local SGD with and without overlap and int8, too, and resist+int4/int8."""

    stages: Counts = ()
    """How many of the network's parts each rank has in gpipe, as [5,4,4,5]. Default: as rank 0 measures the seconds of
    each, so that the slowest rank has the least to do."""

    micro_batches: Several | None = None
    """Micro-batches of a step in gpipe, which trains the images of all ranks in it. Default: the most, up to four for
    each rank, that are of one size."""

    rounds: Count = 4
    """Timed rounds of each measurement, after one that is not; each begins anew from the same weights and images."""

    repeats: Count = 3
    """Number of times that each is measured, in turn."""

    evaluate: bool = True
    """Evaluate what each has trained, once."""

    interface: str | None = None
    """The network interface for PyTorch's collectives; Open MPI's is chosen by its own options."""

    json: Path | None = None
    """Write every measurement into this file as JSON."""

    def check(self) -> None:
        """Refuse rows that there are not, or that such a run cannot have."""
        super().check()
        for flag in ("stages", "micro_batches"):
            if self.changed(flag) and GPIPE not in self.names:
                raise ValueError(f"--{flag} is for gpipe, and --rows has none; leave it out, or add gpipe to --rows")
        if GPIPE in self.names and self.optim.clip_norm is not None:
            raise ValueError(
                f"--optim.clip_norm is {self.optim.clip_norm}, and --rows has gpipe, where no rank has all "
                "gradients, to take a norm of; leave one out"
            )
        for name in self.names:
            try:
                self.training(Row.read(name))
            except ValueError as error:
                raise ValueError(f"--rows has {name!r}: {error}") from None

    @property
    def names(self) -> list[str]:
        """The rows' names, each once."""
        named = usual_rows(self.local_iterations) if self.rows is None else self.rows.split(",")
        return list(dict.fromkeys(name.strip() for name in named))

    def training(self, row: Row) -> Settings:
        """Return the settings of a run by a row's method; local SGD's for PyTorch's.

        So few steps would all be of a warm-up in epochs: there is none.
        """
        return Settings(
            method=row.method or "local-sgd",
            local_iterations=self.local_iterations,
            overlap=row.overlap,
            min_blocks=self.min_blocks,
            seed=self.seed,
            model=self.model,
            data=self.data,
            optim=replace(self.optim, warmup_epochs=0.0),
            exchange=row.exchange,
        )
