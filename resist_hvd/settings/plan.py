"""Settings of a plan: the network, the images, the machines."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from resist_hvd import units
from resist_hvd.settings.model import ModelSettings


class Images(NamedTuple):
    """Facts of a data set that a plan needs."""

    channels: int
    size: int
    classes: int
    train: int


DATASETS = {
    "cifar10": Images(3, 32, 10, 50_000),
    "cifar100": Images(3, 32, 100, 50_000),
    "svhn": Images(3, 32, 10, 73_257),
    "imagenet": Images(3, 224, 1000, 1_281_167),
    "digits": Images(1, 32, 10, 1_437),
}

ASSUMED_RATE = "6tflop"


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Say what a run will cost, before it is paid for.

    By ResIST, local SGD, data-parallel training, GPipe and federated dropout.
    """

    workers: str = "2,4,8"
    """S, one number or several with commas between them."""

    local_iterations: int = 50
    """l, the local iterations of a round."""

    min_blocks: int = 5
    """m, the fewest partitionable blocks a sub-network has."""

    epochs: float = 160.0
    """Passes over the training set, summed over workers."""

    warmup_epochs: float = 0.0
    """Epochs of local SGD that precede ResIST."""

    batch_size: int = 128
    """Images in each worker's batch."""

    dataset: Literal["cifar10", "cifar100", "svhn", "imagenet", "digits"] = "cifar100"
    """The images; image_size, classes, channels and images say otherwise for others."""

    image_size: int | None = None
    """Height and width of an image in pixels. Default: the data set's."""

    classes: int | None = None
    """Classes to tell apart. Default: the data set's."""

    channels: int | None = None
    """Channels of an image. Default: the data set's."""

    images: int | None = None
    """Training images. Default: the data set's."""

    bandwidth: str = "10gbit"
    """Of a host's link, each way: 10gbit, 100mbit, 1.25gbyte."""

    efficiency: float = 0.94
    """Payload's share of what a link carries: 0.94 for TCP in Ethernet frames of 1,500 bytes."""

    latency: str = "50us"
    """Until the first byte of a message arrives."""

    overhead: str = "2ms"
    """Of a synchronisation besides: agreeing on it among all workers, and starting it."""

    ranks_per_host: int = 1
    """Workers that share a host's link."""

    compute_rate: str = ASSUMED_RATE
    """Arithmetic of a worker in a second of training. The default is an assumption: 0.4 of a V100's 15 TFLOP/s."""

    measured: str | None = None
    """Folders of runs (commas between them) of the same network on the same images: the compute rate is theirs."""

    micro_batches: int | None = None
    """Into how many GPipe cuts a step's images. Default: four times its stages."""

    keep: float = 0.75
    """The share of filters that a worker of federated dropout trains."""

    plot: Path | None = None
    """Draw the plan into this file: .png, .svg or .pdf."""

    json: Path | None = None
    """Write the plan into this file as JSON."""

    model: ModelSettings = field(default_factory=ModelSettings)

    def __post_init__(self) -> None:
        lowest = {"local_iterations": 1, "min_blocks": 0, "batch_size": 1, "ranks_per_host": 1, "warmup_epochs": 0}
        optional = dict.fromkeys(("image_size", "classes", "channels", "images", "micro_batches"), 1)
        for name, least in {**lowest, **optional}.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"--{name} is {value}; give {least} or more")
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"--epochs is {self.epochs}; give a number above 0")
        for name in ("efficiency", "keep"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; give a share above 0, at most 1")
        if self.plot is not None and self.plot.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--plot is {str(self.plot)!r}; give a file that ends in .png, .svg or .pdf")
        # Quantities and numbers of workers are read when they are needed; a wrong one is to be told at once.
        _ = self.worker_counts, self.flops, self.link, self.seconds_latency, self.seconds_overhead

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """The numbers of workers to plan for.

        Raises:
            ValueError: they are none, or too large.
        """
        try:
            counts = tuple(int(number) for number in self.workers.split(","))
        except ValueError:
            counts = ()
        if not counts or min(counts) < 1 or max(counts) > 4096:
            raise ValueError(f"--workers is {self.workers!r}; give numbers from 1 to 4096, like 2,4,8")
        return counts

    @property
    def flops(self) -> float:
        """The compute rate that is given or assumed, in FLOP/s."""
        return units.quantity(self.compute_rate, units.FLOPS, setting="compute_rate", example="6tflop")

    @property
    def link(self) -> float:
        """What a host's link carries in a second, in bytes, headers included."""
        return units.quantity(self.bandwidth, units.RATES, setting="bandwidth", example="10gbit")

    @property
    def seconds_latency(self) -> float:
        """Seconds until the first byte of a message arrives."""
        return units.quantity(self.latency, units.TIMES, setting="latency", example="50us", may_be_zero=True)

    @property
    def seconds_overhead(self) -> float:
        """Seconds of a synchronisation besides."""
        return units.quantity(self.overhead, units.TIMES, setting="overhead", example="2ms", may_be_zero=True)

    @property
    def data(self) -> Images:
        """The images as they are planned with."""
        known = DATASETS[self.dataset]
        return Images(
            self.channels or known.channels,
            self.image_size or known.size,
            self.classes or known.classes,
            self.images or known.train,
        )
