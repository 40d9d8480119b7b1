"""Settings of the network: the flags `--model.*`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

BlockKind = Literal["basic", "bottleneck"]
StemKind = Literal["cifar", "imagenet"]
Scope = Literal["section3", "all"]

SECTIONS = {
    "preact_resnet50": (3, 4, 6, 3),
    "preact_resnet101": (3, 4, 23, 3),
    "preact_resnet152": (3, 4, 36, 3),
    "preact_resnet200": (3, 4, 50, 3),
}
"""Blocks a section, as the paper has them (section 5 and its supplement A.4)."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The residual network to train."""

    name: str = "preact_resnet101"
    """One of preact_resnet50, preact_resnet101, preact_resnet152, preact_resnet200; `sections` overrides its depth."""

    sections: str | None = None
    """Blocks of each section, as numbers: 1,1,12,1. The third section's blocks are what ResIST deals out."""

    block: BlockKind = "basic"
    """basic (two 3x3 convolutions, the authors' CIFAR network) or bottleneck (1x1, 3x3, 1x1; ImageNet's usual)."""

    stem: StemKind = "cifar"
    """cifar (a 3x3 convolution) or imagenet (a strided 7x7 convolution and a strided maximum)."""

    width_factor: float = 1.0
    """Multiplies the channels of every section; the first has 64 at 1.0."""

    final_norm: bool = True
    """Normalise before the head, as He et al. (2016b) do; the authors' released CIFAR network does not."""

    zero_init_residual: bool = True
    """Begin with every block as the identity, its last convolution zero (Goyal et al. 2017, section 5.1): sub-networks
    of different blocks then agree from the start. Without, all convolutions begin as in He et al. (2015)."""

    partition: Scope = "section3"
    """Blocks to deal out: those of section3 but its strided one, or all that are not strided (the paper's ablation)."""

    def __post_init__(self) -> None:
        if self.sections is None and self.name not in SECTIONS:
            raise ValueError(f"model.name is {self.name!r}; give one of {', '.join(SECTIONS)}, or model.sections")
        if not 0 < self.width_factor < math.inf or round(64 * self.width_factor) < 1:
            raise ValueError(f"model.width_factor is {self.width_factor}; give one that leaves a channel, like 0.25")
        counts = self.counts
        if len(counts) < 3 or min(counts) < 1:
            raise ValueError(
                f"model.sections is {self.sections!r}; give three numbers of blocks or more, none 0, like 1,1,12,1"
            )

    @property
    def counts(self) -> tuple[int, ...]:
        """Blocks of each section.

        Raises:
            ValueError: `sections` are no numbers.
        """
        if self.sections is None:
            return SECTIONS[self.name]
        try:
            return tuple(int(number) for number in self.sections.strip("[]() ").split(","))
        except ValueError:
            raise ValueError(
                f"model.sections is {self.sections!r}; give numbers of blocks with commas between them, like 1,1,12,1"
            ) from None
