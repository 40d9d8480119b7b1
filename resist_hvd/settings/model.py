"""Settings of the network: the flags `--model.*`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from resist_hvd.settings.group import Bound, Group

BlockKind = Literal["basic", "bottleneck"]
StemKind = Literal["cifar", "imagenet"]
Scope = Literal["section3", "all"]

LIBRARIES = ("torchvision", "timm")
"""Libraries whose networks are known: NAME of a library is made by `nets/LIBRARY_nets.py`."""

SECTIONS = {
    "preact_resnet50": (3, 4, 6, 3),
    "preact_resnet101": (3, 4, 23, 3),
    "preact_resnet152": (3, 4, 36, 3),
    "preact_resnet200": (3, 4, 50, 3),
}
"""Blocks a section, as the paper has them (section 5 and its supplement A.4)."""


OF_PREACT = ("sections", "block", "stem", "width_factor", "final_norm")
"""Settings of the pre-activation networks alone."""


def family_of(name: str | None, parts: str | None) -> str:
    """Return the family of a network by its name, or by its own parts: preact, parts, or a library."""
    if parts is not None:
        return "parts"
    library, slash, _ = (name or "").partition("/")
    return library if slash and library in LIBRARIES else "preact"


Width = Annotated[float, Bound("one that leaves a channel, like 0.25", lambda factor: 0.5 / 64 < factor < math.inf)]


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Group):
    """The residual network to train."""

    PREFIX: ClassVar = "model."

    name: str = "preact_resnet101"
    """One of preact_resnet50, preact_resnet101, preact_resnet152, preact_resnet200, whose depth sections overrides; or
    torchvision/NAME or timm/NAME, as torchvision/resnet50, timm/vit_tiny_patch16_224."""

    parts: str | None = None
    """A network of your own: module:function, or FILE.py:function, that returns a resist_hvd.nets.Network or a list of
    parts."""

    weights: Path | None = None
    """A file of weights to begin with, as trained elsewhere: safetensors, or a state dict that torch.save wrote."""

    options: dict[str, Any] = field(default_factory=dict)
    """What the constructor of a torchvision or timm network is given besides, or the function of parts."""

    sections: str | None = None
    """Blocks of each section, as numbers: 1,1,12,1. The third section's blocks are what ResIST deals out."""

    block: BlockKind = "basic"
    """basic (two 3x3 convolutions, the authors' CIFAR network) or bottleneck (1x1, 3x3, 1x1; ImageNet's usual)."""

    stem: StemKind = "cifar"
    """cifar (a 3x3 convolution) or imagenet (a strided 7x7 convolution and a strided maximum)."""

    width_factor: Width = 1.0
    """Multiplies the channels of every section; the first has 64 at 1.0."""

    final_norm: bool = True
    """Normalise before the head, as He et al. (2016b) do; the authors' released CIFAR network does not."""

    zero_init_residual: bool | None = None
    """Begin with every dealt block as the identity, the layers that end its branches zero (Goyal et al. 2017, section
    5.1): sub-networks of different blocks then agree from the start. Default: true for pre-activation networks, and for
    others what their library does."""

    partition: Scope = "section3"
    """Blocks to deal out: those of section3 but its strided one, or all that are not strided (the paper's ablation)."""

    def check(self) -> None:
        """Refuse a network that there is not, and settings that do nothing for it."""
        if self.family != "preact":
            self._refuse_what_does_nothing()
            return
        if self.sections is None and self.name not in SECTIONS:
            raise ValueError(
                f"--model.name is {self.name!r}; give one of {', '.join(SECTIONS)}, torchvision/NAME or timm/NAME, or "
                "--model.sections"
            )
        if self.options:
            raise ValueError("--model.options are for torchvision's, timm's and your own networks; leave them out")
        counts = self.counts
        if len(counts) < 3 or min(counts) < 1:
            raise ValueError(
                f"--model.sections is {self.sections!r}; give three numbers of blocks or more, none 0, like 1,1,12,1"
            )

    def _refuse_what_does_nothing(self) -> None:
        """Refuse settings of pre-activation networks that are not their defaults, where the network is another."""
        which = f"--model.parts {self.parts}" if self.family == "parts" else self.name
        for name in OF_PREACT:
            if self.changed(name):
                raise ValueError(
                    f"--model.{name} is {getattr(self, name)}, which does nothing for {which}: it is for "
                    f"{', '.join(SECTIONS)}; leave the flag out"
                )
        if self.family == "parts" and self.changed("name"):
            raise ValueError(f"--model.name is {self.name}, and --model.parts gives another network; leave one out")

    @property
    def family(self) -> str:
        """Origin of the network."""
        return family_of(self.name, self.parts)

    @property
    def title(self) -> str:
        """Name that people know the network by."""
        return self.parts or self.sections or self.name

    @property
    def counts(self) -> tuple[int, ...]:
        """Blocks of each section.

        Raises:
            ValueError: `sections` are no numbers, or the network is of another family.
        """
        if self.sections is None:
            if self.name not in SECTIONS:
                raise ValueError(f"--model.name is {self.name}, which has no sections; give a pre-activation network")
            return SECTIONS[self.name]
        try:
            return tuple(int(number) for number in self.sections.strip("[]() ").split(","))
        except ValueError:
            raise ValueError(
                f"--model.sections is {self.sections!r}; give numbers of blocks with commas between them, like 1,1,12,1"
            ) from None
