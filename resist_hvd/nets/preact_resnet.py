"""Pre-activation residual networks (He et al. 2016, "Identity Mappings in Deep Residual Networks").

A network is a stem, sections of blocks, and a head. A block is a chain of units, a unit being norm, ReLU, convolution,
in that order. Without a final norm and with basic blocks this is the authors' released CIFAR network, to the parameter.
"""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from resist_hvd.nets.architecture import EXPANSION, Architecture
from resist_hvd.nets.norms import Norm
from resist_hvd.nets.parts import Network, Part


class Unit(nn.Module):
    """Norm, ReLU, convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.norm = Norm(inputs)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)

    def activate(self, x: Tensor) -> Tensor:
        """Return x normalised and rectified: what the convolution sees."""
        return functional.relu(self.norm(x), inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of the activated x."""
        convolved: Tensor = self.conv(self.activate(x))
        return convolved


class Projection(nn.Conv2d):
    """The 1x1 convolution of a shortcut whose block changes the shape."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection of x, at every `stride`-th place."""
        if self.in_channels < 16 and x.device.type == "cpu":
            # oneDNN's backward pass of a strided 1x1 convolution writes past its buffer where channels are fewer than a
            # vector register's (https://github.com/uxlfoundation/oneDNN/issues/6035). Its plain one does not.
            _, step = self.stride
            return functional.conv2d(x[:, :, ::step, ::step], self.weight)
        return super().forward(x)


class Block(nn.Module):
    """A residual block: the shortcut plus a chain of units.

    The shortcut is the identity, or, where the shape changes, a 1x1 convolution of the first unit's activation.
    """

    def __init__(self, architecture: Architecture, section: int, *, first: bool) -> None:
        super().__init__()
        expansion = EXPANSION[architecture.block]
        width = architecture.width * 2**section
        outputs = width * expansion
        stride = 2 if first and section > 0 else 1
        inputs = outputs
        if first:
            inputs = architecture.outputs(section - 1) if section > 0 else architecture.width
        if architecture.block == "basic":
            units = [Unit(inputs, width, 3, stride), Unit(width, width, 3)]
        else:
            units = [Unit(inputs, width, 1), Unit(width, width, 3, stride), Unit(width, outputs, 1)]
        self.units = nn.ModuleList(units)
        projects = inputs != outputs or stride != 1
        self.shortcut = Projection(inputs, outputs, stride) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, of the shape that the next block takes."""
        first, *rest = (cast(Unit, unit) for unit in self.units)
        h = first.activate(x)
        shortcut = x if self.shortcut is None else self.shortcut(h)
        h = first.conv(h)
        for unit in rest:
            h = unit(h)
        output: Tensor = shortcut + h
        return output


class Stem(nn.Sequential):
    """From images to the first section's input."""

    def __init__(self, architecture: Architecture) -> None:
        if architecture.stem == "cifar":
            super().__init__(nn.Conv2d(architecture.channels, architecture.width, 3, 1, 1, bias=False))
        else:
            conv = nn.Conv2d(architecture.channels, architecture.width, 7, 2, 3, bias=False)
            super().__init__(conv, nn.MaxPool2d(3, 2, 1))


class Head(nn.Module):
    """From the last section's output to class scores."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels = architecture.outputs(len(architecture.sections) - 1)
        self.norm = Norm(channels) if architecture.final_norm else None
        self.linear = nn.Linear(channels, architecture.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [batch, classes]."""
        if self.norm is not None:
            x = functional.relu(self.norm(x), inplace=True)
        scores: Tensor = self.linear(x.mean(dim=(2, 3)))
        return scores


def network(architecture: Architecture, *, image_size: int, zero_residual: bool = False) -> Network:
    """Return a network's parts: its stem, its blocks, of which those that keep the shape are dealt out, its head.

    Args:
        architecture: its shape.
        image_size: height and width of its images, in pixels.
        zero_residual: whether blocks begin as the identity, as `initialise` has it.
    """
    fill = partial(initialise, zero_residual=zero_residual)
    parts = [Part("stem", partial(Stem, architecture), initialise=fill)]
    last = 1 if architecture.block == "basic" else 2
    for section, blocks in enumerate(architecture.sections):
        for place in range(blocks):
            dealt = place >= architecture.leading[section]
            parts.append(
                Part(
                    f"sections.{section}.{place}",
                    partial(Block, architecture, section, first=place == 0 and not dealt),
                    deck=f"sections.{section}" if dealt else None,
                    branches=(f"units.{last}.conv",) if dealt else (),
                    initialise=fill,
                )
            )
    parts.append(Part("head", partial(Head, architecture), initialise=fill))
    return Network(
        tuple(parts),
        example=torch.empty(2, architecture.channels, image_size, image_size, device="meta"),
        description={"family": "preact_resnet", **architecture.to_json()},
        title=f"pre-activation ResNet, sections {','.join(map(str, architecture.sections))}",
    )


def initialise(module: nn.Module, seed: int, *, zero_residual: bool = False) -> None:
    """Fill a module's parameters in their order, from a seed of its own.

    Convolutions as in He et al. (2015), by fan-out; norms are the identity; the head is uniform by its inputs.

    Args:
        module: a stem, a block or a head.
        seed: its own.
        zero_residual: whether the last convolution of a block is zero instead; all others are what they would be.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.out_channels * part.kernel_size[0] * part.kernel_size[1]
            weight = torch.empty(part.weight.shape, dtype=part.weight.dtype)
            part.weight.data.copy_(weight.normal_(0.0, math.sqrt(2.0 / fan_out), generator=generator))
        elif isinstance(part, nn.Linear):
            bound = 1.0 / math.sqrt(part.in_features)
            weight = torch.empty(part.weight.shape, dtype=part.weight.dtype)
            part.weight.data.copy_(weight.uniform_(-bound, bound, generator=generator))
            part.bias.data.zero_()
        elif isinstance(part, Norm):
            part.weight.data.fill_(1.0)
            part.bias.data.zero_()
    if zero_residual and isinstance(module, Block):
        cast(Unit, module.units[-1]).conv.weight.data.zero_()
