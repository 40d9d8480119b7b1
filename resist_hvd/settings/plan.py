"""Settings of a plan: the network, the images, the machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from resist_hvd import units
from resist_hvd.settings.data import FACTS, Facts
from resist_hvd.settings.group import Bound, Count, Share
from resist_hvd.settings.run import Settings

ASSUMED_RATE = "6tflop"
MOST_WORKERS = 4096

BASE = {"data.name": "cifar100", "data.batch_size": 128, "epochs": 160.0}
"""Settings that a plan without a recipe or a run begins with: the paper's on CIFAR-100."""

ALIASES = {
    "dataset": "data.name",
    "batch_size": "data.batch_size",
    "image_size": "data.image_size",
    "keep": "keep_filters",
}
"""Flags that go by a run's names now."""


def numbers_in(text: str) -> tuple[int, ...]:
    """Return numbers of workers with commas between them; none where one of them is none, or too large."""
    try:
        counts = tuple(int(number) for number in text.split(","))
    except ValueError:
        return ()
    return counts if min(counts) >= 1 and max(counts) <= MOST_WORKERS else ()


Workers = Annotated[str, Bound("numbers from 1 to 4096, like 2,4,8", lambda text: len(numbers_in(text)) > 0)]
Picture = Annotated[
    Path, Bound("a file that ends in .png, .svg or .pdf", lambda path: path.suffix in (".png", ".svg", ".pdf"))
]


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Settings):
    """Say what a run will cost, before it is paid for.

    By ResIST, local SGD, data-parallel training, GPipe and federated dropout.
    """

    TAKES: ClassVar = (
        "local_iterations",
        "min_blocks",
        "outer_momentum",
        "outer_momentum_blocks",
        "overlap",
        "keep_filters",
        "epochs",
        "warmup_epochs",
        "task.anchors",
        "task.anchor_count",
        "model",
        "exchange",
        "data.name",
        "data.batch_size",
        "data.image_size",
    )

    workers: Workers = "2,4,8"
    """S, one number or several with commas between them."""

    classes: Count | None = None
    """Classes to tell apart. Default: the data set's."""

    channels: Count | None = None
    """Channels of an image. Default: the data set's."""

    images: Count | None = None
    """Training images. Default: the data set's."""

    bandwidth: str = "10gbit"
    """Of a host's link, each way: 10gbit, 100mbit, 1.25gbyte."""

    efficiency: Share = units.PAYLOAD
    """Payload's share of what a link carries: 0.94 for TCP in Ethernet frames of 1,500 bytes."""

    latency: str = "50us"
    """Until the first byte of a message arrives."""

    overhead: str = "2ms"
    """Of a synchronisation besides: agreeing on it among all workers, and starting it."""

    ranks_per_host: Count = 1
    """Workers that share a host's link."""

    compute_rate: str = ASSUMED_RATE
    """Arithmetic of a worker in a second of training. The default is an assumption: 0.4 of a V100's 15 TFLOP/s."""

    measured: str | None = None
    """Folders of runs (commas between them) of the same network on the same images: the compute rate is theirs."""

    micro_batches: Count | None = None
    """Into how many GPipe cuts a step's images. Default: four times its stages."""

    plot: Picture | None = None
    """Draw the plan into this file: .png, .svg or .pdf."""

    json: Path | None = None
    """Write the plan into this file as JSON."""

    @property
    def reads_images(self) -> bool:
        """Nothing is read for a plan."""
        return False

    def check(self) -> None:
        """Refuse quantities without a unit, and images of which too little is known."""
        super().check()
        _ = self.flops, self.link, self.seconds_latency, self.seconds_overhead, self.facts

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """The numbers of workers to plan for."""
        return numbers_in(self.workers)

    @property
    def flops(self) -> float:
        """The compute rate that is given or assumed, in FLOP/s."""
        return units.quantity(self.compute_rate, units.FLOPS, setting="compute_rate", example="6tflop")

    @property
    def link(self) -> float:
        """Capacity of a host's link in a second, in bytes, headers included."""
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
    def facts(self) -> Facts:
        """The images as they are planned with.

        Raises:
            ValueError: of this data set something is not known, and not given.
        """
        known = FACTS.get(self.data.name, Facts(3, 0, 0, 0))
        size = self.data.image_size or known.size
        facts = Facts(self.channels or known.channels, size, self.classes or known.classes, self.images or known.train)
        missing = [
            flag for flag, fact in zip(("data.image_size", "classes", "images"), facts[1:], strict=True) if not fact
        ]
        if missing:
            raise ValueError(
                f"--data.name is {self.data.name}, of which a plan knows too little; give "
                f"{', '.join(f'--{flag}' for flag in missing)}"
            )
        return facts
