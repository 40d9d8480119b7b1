"""Sizes of a network's parts, from its architecture alone: nothing is built, and PyTorch is not loaded.

The parts are those of `resnet.ResNet`, in its order: the stem, the blocks, the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from resist_hvd.nets.architecture import EXPANSION, Architecture


@dataclass(frozen=True)
class Size:
    """A part of a network: its parameters, and what one image costs in it.

    Attributes:
        parameters: how many it has.
        flops: of one image's forward pass, a multiplication and an addition counting as two; convolutions and the head
            alone, as is usual: norms and activations take no arithmetic to speak of.
        kept: numbers that the backward pass needs of one image: every norm's input, every convolution's.
        output: numbers that the part hands on of one image.
    """

    parameters: int
    flops: int
    kept: int
    output: int


def part_sizes(architecture: Architecture, image_size: int) -> tuple[Size, ...]:
    """Return the sizes of the stem, of every block in order, and of the head.

    Args:
        architecture: the network.
        image_size: height and width of its images, in pixels.
    """
    stem, size = _stem(architecture, image_size)
    parts = [stem]
    for section, blocks in enumerate(architecture.sections):
        for place in range(blocks):
            part, size = _block(
                architecture, section, first=place == 0 and architecture.leading[section] > 0, size=size
            )
            parts.append(part)
    return (*parts, _head(architecture, size))


def deck_ranges(architecture: Architecture) -> tuple[range, ...]:
    """Return for each section where the blocks that are dealt out stand among the parts."""
    ranges, first = [], 1
    for blocks, shared in zip(architecture.sections, architecture.leading, strict=True):
        ranges.append(range(first + shared, first + blocks))
        first += blocks
    return tuple(ranges)


def _stem(architecture: Architecture, image_size: int) -> tuple[Size, int]:
    channels, width = architecture.channels, architecture.width
    kernel, stride = (3, 1) if architecture.stem == "cifar" else (7, 2)
    size = -(-image_size // stride)
    parameters = channels * width * kernel**2
    flops, kept = 2 * parameters * size**2, channels * image_size**2
    if architecture.stem == "imagenet":
        # A maximum keeps its input, and for each output the place it came from, in 64 bits.
        pooled = -(-size // 2)
        kept += width * size**2 + 2 * width * pooled**2
        size = pooled
    return Size(parameters, flops, kept, width * size**2), size


def _block(architecture: Architecture, section: int, *, first: bool, size: int) -> tuple[Size, int]:
    width = architecture.width << section
    outputs = architecture.outputs(section)
    inputs = outputs
    if first:
        inputs = architecture.outputs(section - 1) if section > 0 else architecture.width
    stride = 2 if first and section > 0 else 1
    after = -(-size // stride)
    parameters = flops = kept = 0
    for in_channels, out_channels, kernel, before, behind in _units(architecture, inputs, width, size, after):
        weights = in_channels * out_channels * kernel**2
        parameters += weights + 2 * in_channels
        flops += 2 * weights * behind**2
        kept += 2 * in_channels * before**2
    if inputs != outputs or stride != 1:
        parameters += inputs * outputs
        flops += 2 * inputs * outputs * after**2
    return Size(parameters, flops, kept, outputs * after**2), after


def _units(
    architecture: Architecture, inputs: int, width: int, size: int, after: int
) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield each convolution's channels in and out, its kernel, and the image's size before and behind it."""
    if architecture.block == "basic":
        yield inputs, width, 3, size, after
        yield width, width, 3, after, after
    else:
        yield inputs, width, 1, size, size
        yield width, width, 3, size, after
        yield width, width * EXPANSION["bottleneck"], 1, after, after


def _head(architecture: Architecture, size: int) -> Size:
    channels, classes = architecture.outputs(len(architecture.sections) - 1), architecture.classes
    parameters, kept = channels * classes + classes, channels
    if architecture.final_norm:
        parameters += 2 * channels
        kept += 2 * channels * size**2
    return Size(parameters, 2 * channels * classes, kept, classes)
