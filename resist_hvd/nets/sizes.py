"""Sizes of a network's parts, counted on the meta device: nothing of it is built in memory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resist_hvd.nets.parts import Network


class Size(NamedTuple):
    """Size of a part.

    Attributes:
        parameters: how many it has.
        flops: of one input's forward pass, a multiplication and an addition counting as two; matrix products,
            convolutions and attention alone, as is usual.
        kept: numbers that the backward pass needs of one input, beside parameters.
        output: numbers that the part hands on of one input.
    """

    parameters: int
    flops: int
    kept: int
    output: int


def part_sizes(network: Network) -> tuple[Size, ...]:
    """Return the size of each part, at the network's example; blocks of a deck are measured once."""
    sizes: list[Size] = []
    known: dict[tuple[Any, ...], Size] = {}
    x = network.example
    assert x is not None
    for part, module, output in zip(network.parts, network.modules, network.outputs, strict=True):
        key = (part.deck, tuple(x.shape))
        if part.deck is None or key not in known:
            known[key] = _measure(module, x)
        sizes.append(known[key])
        x = output
    return tuple(sizes)


def deck_ranges(network: Network) -> tuple[range, ...]:
    """Return for each deck where its blocks stand among the parts."""
    return tuple(range(deck.first, deck.first + deck.blocks) for deck in network.decks)


def _measure(module: nn.Module, x: Tensor) -> Size:
    kept: dict[int, Tensor] = {}

    def keep(saved: Tensor) -> Tensor:
        if not isinstance(saved, nn.Parameter):
            kept[saved.untyped_storage()._cdata] = saved
        return saved

    if x.is_floating_point():
        x = x.detach().requires_grad_()
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved),
    ):
        output = module(x)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    numbers = sum(saved.numel() for saved in kept.values())
    inputs = len(x)
    return Size(parameters, counter.get_total_flops() // inputs, numbers // inputs, math.prod(output.shape[1:]))
