"""A network's shape in numbers: its sections, its blocks, and which of them can be partitioned."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

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

EXPANSION = {"basic": 1, "bottleneck": 4}


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


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network's shape, complete: all that is needed to build it, and what an exported model's JSON says of it.

    Attributes:
        sections: blocks of each section.
        width: channels of the first section's 3x3 convolutions; they double from section to section.
        channels: channels of the images.
        classes: how many classes the head tells apart.
    """

    sections: tuple[int, ...]
    block: BlockKind
    stem: StemKind
    width: int
    final_norm: bool
    partition: Scope
    channels: int
    classes: int

    @classmethod
    def of(cls, settings: ModelSettings, *, channels: int, classes: int) -> Architecture:
        """Return the architecture that `settings` ask for, on images and classes as the data has them."""
        return cls(
            sections=settings.counts,
            block=settings.block,
            stem=settings.stem,
            width=round(64 * settings.width_factor),
            final_norm=settings.final_norm,
            partition=settings.partition,
            channels=channels,
            classes=classes,
        )

    @classmethod
    def from_json(cls, description: dict[str, Any]) -> Architecture:
        """Return the architecture that `to_json` described.

        Raises:
            ValueError: it is no such description.
        """
        if not isinstance(description, dict) or set(description) != set(cls.__dataclass_fields__):
            raise ValueError(f"an architecture has {', '.join(cls.__dataclass_fields__)} and nothing else")
        sections = description["sections"]
        if not isinstance(sections, list) or len(sections) < 3 or not all(map(_is_count, sections)):
            raise ValueError("sections are no numbers of blocks, three or more")
        for name in ("width", "channels", "classes"):
            if not _is_count(description[name]):
                raise ValueError(f"{name} is {str(description[name])[:40]!r}, no number from 1 up")
        for name, possible in {
            "block": get_args(BlockKind),
            "stem": get_args(StemKind),
            "partition": get_args(Scope),
            "final_norm": (True, False),
        }.items():
            if description[name] not in possible:
                raise ValueError(f"{name} is {str(description[name])[:40]!r}, none of {possible}")
        return cls(**{**description, "sections": tuple(sections)})

    def to_json(self) -> dict[str, Any]:
        """Return the architecture as plain JSON values."""
        return {**asdict(self), "sections": list(self.sections)}

    def outputs(self, section: int) -> int:
        """Return the channels that a section's blocks put out."""
        return (self.width << section) * EXPANSION[self.block]

    def last_side(self, image_size: int) -> int:
        """Return height and width of the last section's activations, the smallest, for square images of this size."""
        halvings = len(self.sections) - 1 + (2 if self.stem == "imagenet" else 0)
        return -(-image_size // (1 << halvings))

    @cached_property
    def leading(self) -> tuple[int, ...]:
        """For each section how many of its first blocks are shared by all workers, never dealt.

        A block can be dealt where its shortcut is the identity, so that leaving it out changes no shape. Under
        `section3` only the third section has such a deck; in the others every block is shared.
        """
        counts = []
        for section, blocks in enumerate(self.sections):
            if self.partition == "section3" and section != 2:
                counts.append(blocks)
            else:
                projects = section > 0 or self.width != self.outputs(0)
                counts.append(1 if projects else 0)
        return tuple(counts)

    @cached_property
    def decks(self) -> tuple[int, ...]:
        """For each section how many of its blocks are dealt out."""
        return tuple(blocks - shared for blocks, shared in zip(self.sections, self.leading, strict=True))

    @property
    def partitionable(self) -> int:
        """N, the number of blocks that are dealt out, over all sections."""
        return sum(self.decks)

    def place(self, block: int) -> tuple[int, int]:
        """Return the section of a partitionable block, and its place among all of that section's blocks.

        Raises:
            IndexError: there are not so many.
        """
        for section, blocks in enumerate(self.decks):
            if block < blocks:
                return section, self.leading[section] + block
            block -= blocks
        raise IndexError("no such partitionable block")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1
