"""Pre-activation networks with fewer filters, and the place of each of their numbers in the whole network.

All convolutions are thinned alike, as Caldas et al. (2018) do it: of the images' channels and of the classes all stay.
The channels of a residual stream are one set from the block that begins it to the block that projects it, those between
a block's convolutions a set of their own. So a thin network is the same architecture at a smaller width.

Numbers of the whole network are counted through: part by part, parameter by parameter, as they lie in memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from resist_hvd.nets import preact_resnet
from resist_hvd.nets.architecture import Architecture
from resist_hvd.nets.parts import Network
from resist_hvd.nets.preact_resnet import Block, Head, Stem
from resist_hvd.protocol.filters import Channels, Hand, kept_of

FAMILY = "preact_resnet"


class Axis(NamedTuple):
    """An axis of a parameter in memory.

    Attributes:
        size: its length in the whole network.
        kept: its length in the thin one.
        channels: the name of the channels along it; None where all are kept.
    """

    size: int
    kept: int
    channels: str | None


class Thinned(NamedTuple):
    """A parameter of the whole network.

    Attributes:
        part: the place of its part.
        name: its name there.
        axes: in the order of memory.
        inputs: which of its axes it sums over; None for one that scales or shifts.
    """

    part: int
    name: str
    axes: tuple[Axis, ...]
    inputs: Axis | None

    @property
    def numbers(self) -> int:
        """Its count of numbers."""
        return int(np.prod([axis.size for axis in self.axes]))

    @property
    def kept(self) -> int:
        """The count of those that a thin network has."""
        return int(np.prod([axis.kept for axis in self.axes]))


@dataclass(frozen=True)
class Thinning:
    """A network, and the thin ones that can be taken out of it.

    Attributes:
        whole: the network.
        thin: one of them; all have its shape. It has no decks.
        parameters: the whole network's, in order.
    """

    whole: Network
    thin: Network
    parameters: tuple[Thinned, ...]

    @cached_property
    def channels(self) -> tuple[Channels, ...]:
        """All channels that are thinned."""
        axes = (axis for parameter in self.parameters for axis in parameter.axes)
        return tuple({a.channels: Channels(a.channels, a.size, a.kept) for a in axes if a.channels}.values())

    @cached_property
    def firsts(self) -> tuple[int, ...]:
        """Each parameter's beginning among the whole network's numbers, and their end."""
        return tuple(accumulate((parameter.numbers for parameter in self.parameters), initial=0))

    @cached_property
    def _thin_firsts(self) -> tuple[int, ...]:
        return tuple(accumulate((parameter.kept for parameter in self.parameters), initial=0))

    @cached_property
    def part_edges(self) -> tuple[int, ...]:
        """Each part's beginning among the whole network's numbers, and their end."""
        sizes = [0] * len(self.whole.parts)
        for parameter in self.parameters:
            sizes[parameter.part] += parameter.numbers
        return tuple(accumulate(sizes, initial=0))

    def places(self, hand: Hand, first: int, end: int) -> NDArray[np.int64]:
        """Return where the numbers of a thin network lie in a stretch of the whole one's, counted from its beginning.

        They ascend: a stretch of the whole network is a stretch of the thin one.

        Args:
            hand: the thin network's channels.
            first: where the stretch begins.
            end: where it ends.
        """
        found = [np.empty(0, dtype=np.int64)]
        for number in range(max(0, bisect_right(self.firsts, first) - 1), len(self.parameters)):
            if self.firsts[number] >= end:
                break
            places = self._places(hand, number)
            found.append(places[np.searchsorted(places, first) : np.searchsorted(places, end)])
        return np.concatenate(found) - first

    def cut(self, hand: Hand, edges: Sequence[int]) -> list[int]:
        """Return where edges between numbers of the whole network lie among those of a thin one."""
        cuts = []
        for edge in edges:
            number = min(bisect_right(self.firsts, edge), len(self.parameters)) - 1
            cuts.append(self._thin_firsts[number] + int(np.searchsorted(self._places(hand, number), edge)))
        return cuts

    def _places(self, hand: Hand, number: int) -> NDArray[np.int64]:
        """Return where the numbers of a thin network's parameter lie in the whole network's."""
        places = np.zeros(1, dtype=np.int64)
        for size, _, channels in self.parameters[number].axes:
            along = np.arange(size) if channels is None else np.array(hand[channels])
            places = (places[:, None] * size + along).ravel()
        return places + self.firsts[number]

    def scales(self, part: int) -> dict[str, float]:
        """Return by what a part's weights are multiplied, by their names, to compute with all channels at once.

        Of what a weight sums over a thin network has a share, by which it is multiplied: what comes of it is then what
        thin networks have on average (Srivastava et al. 2014, section 10, who call it the weight scaling rule).
        """
        own = (parameter for parameter in self.parameters if parameter.part == part)
        return {p.name: p.inputs.kept / p.inputs.size for p in own if p.inputs and p.inputs.kept < p.inputs.size}


def thin_network(network: Network, share: float) -> Network:
    """Return a network's architecture with a share of its filters, as near to it as the first section's number allows.

    Raises:
        ValueError: the network is of a family of which nothing is known to thin.
    """
    description = dict(network.description)
    if description.pop("family", None) != FAMILY or network.example is None:
        raise ValueError(f"only networks of family {FAMILY} are thinned")
    description.pop("image_size", None)
    whole = Architecture.from_json(description)
    return preact_resnet.network(
        replace(whole, width=kept_of(whole.width, share)), image_size=network.example.shape[-1]
    )


def thinning_of(network: Network, share: float) -> Thinning:
    """Return what can be taken out of a network with a share of its filters; see `thin_network`."""
    thin = thin_network(network, share)
    parameters = tuple(
        Thinned(place, name, axes, axes[-1] if len(axes) > 1 else None)
        for place, (module, smaller, named) in enumerate(
            zip(network.modules, thin.modules, channels_of(network), strict=True)
        )
        for name, axes in _axes(module, smaller, named)
    )
    return Thinning(network, replace(thin, parts=tuple(replace(part, deck=None) for part in thin.parts)), parameters)


def _axes(
    module: nn.Module, smaller: nn.Module, named: dict[str, tuple[str | None, ...]]
) -> Iterator[tuple[str, tuple[Axis, ...]]]:
    """Yield each parameter's name and axes; convolutions lie in memory in the order of channels_last."""
    thin = dict(smaller.named_parameters())
    for name, parameter in module.named_parameters():
        sizes = zip(parameter.shape, thin[name].shape, strict=True)
        axes = [Axis(size, kept, channels) for (size, kept), channels in zip(sizes, named[name], strict=False)]
        if parameter.dim() == 4:
            outputs, inputs = axes
            places = parameter.shape[2] * parameter.shape[3]
            axes = [outputs, Axis(places, places, None), inputs]
        yield name, tuple(axes)


def channels_of(network: Network) -> Iterator[dict[str, tuple[str | None, ...]]]:
    """Yield for each part, by its parameters' names, the names of the channels along their first two axes."""
    stream = "stem"
    for part, module in zip(network.parts, network.modules, strict=True):
        match module:
            case Stem():
                yield {"0.weight": (stream, None)}
            case Head():
                yield {
                    "norm.weight": (stream,),
                    "norm.bias": (stream,),
                    "linear.weight": (None, stream),
                    "linear.bias": (None,),
                }
            case Block():
                entering = stream
                stream = part.name if module.shortcut is not None else entering
                between = [f"{part.name}.units.{unit}" for unit in range(len(module.units) - 1)]
                named: dict[str, tuple[str | None, ...]] = {"shortcut.weight": (stream, entering)}
                for unit, (before, after) in enumerate(pairwise([entering, *between, stream])):
                    named |= dict.fromkeys((f"units.{unit}.norm.weight", f"units.{unit}.norm.bias"), (before,))
                    named[f"units.{unit}.conv.weight"] = (after, before)
                yield named
            case _:
                raise ValueError(f"part {part.name} is none of a pre-activation network's")
