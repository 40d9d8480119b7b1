"""A network's shape in numbers: its sections, its blocks, and which of them can be partitioned."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, get_args

from resist_hvd.settings.model import BlockKind, ModelSettings, Scope, StemKind

EXPANSION = {"basic": 1, "bottleneck": 4}


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


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1
