"""Post-activation residual networks for small images, for `--model.parts`: what the paper began with (A.1)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from resist_hvd.nets.norms import Norm
from resist_hvd.nets.parts import Part


class Stem(nn.Sequential):
    """A 3x3 convolution, a norm, ReLU: from [batch, channels, height, width] to [batch, width, height, width]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(nn.Conv2d(channels, width, 3, 1, 1, bias=False), Norm(width), nn.ReLU())


class Projected(BasicBlock):  # type: ignore[misc]  # torchvision is not typed
    """A block that changes the shape; its shortcut is a 1x1 convolution and a norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), Norm(outputs))
        super().__init__(inputs, outputs, stride, shortcut, norm_layer=Norm)


class Head(nn.Linear):
    """The mean over places, then scores: from [batch, inputs, height, width] to [batch, classes]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores."""
        return super().forward(torch.mean(x, dim=(2, 3)))


def post_activation(
    channels: int,
    image_size: int,
    classes: int,
    sections: str = "3,4,23,3",
    width: int = 64,
    partition: str = "section3",
) -> list[Part]:
    """Return a post-activation network of two-convolution blocks, part by part.

    Args:
        channels: of the images.
        image_size: of no account; the network takes any.
        classes: how many the head tells apart.
        sections: blocks of each section, with commas between them.
        width: channels of the first section; they double from section to section.
        partition: section3, or all: the sections whose blocks are dealt out, but for the strided ones.
    """
    parts = [Part("stem", partial(Stem, channels, width))]
    inputs = width
    for section, blocks in enumerate(map(int, sections.split(","))):
        outputs = width << section
        for place in range(blocks):
            name = f"sections.{section}.{place}"
            if inputs != outputs:
                parts.append(Part(name, partial(Projected, inputs, outputs, 2)))
            else:
                dealt = (partition == "all" or section == 2) and (place > 0 or section == 0)
                deck = f"sections.{section}" if dealt else None
                block = partial(BasicBlock, outputs, outputs, norm_layer=Norm)
                parts.append(Part(name, block, deck=deck, branches=("bn2",) if dealt else ()))
            inputs = outputs
    return [*parts, Part("head", partial(Head, inputs, classes))]
