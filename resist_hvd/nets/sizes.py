"""Sizes of a network's parts, counted on a part at a time, and on one block for each deck."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from resist_hvd.nets.parts import Network, blank


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
            known[key] = _measure(blank(part, module), torch.zeros(x.shape, dtype=x.dtype))
        sizes.append(known[key])
        x = output
    return tuple(sizes)


def deck_ranges(network: Network) -> tuple[range, ...]:
    """Return for each deck where its blocks stand among the parts."""
    return tuple(range(deck.first, deck.first + deck.blocks) for deck in network.decks)


def _measure(module: nn.Module, x: Tensor) -> Size:
    parameters = {storage(parameter): parameter for parameter in module.parameters()}
    kept: dict[int, tuple[Any, int]] = {}

    def keep(saved: Tensor) -> None:
        # A view of a parameter takes no memory of its own: a linear layer keeps its weight transposed. Of others the
        # memory is held here, so that it is no other tensor's meanwhile; the tensor would hold the graph that holds it.
        if storage(saved) not in parameters:
            kept[storage(saved)] = saved.untyped_storage(), saved.numel()

    if x.is_floating_point():
        x.requires_grad_()
    counter = _Counter()  # type: ignore[no-untyped-call]
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        output = module(x)
    numbers = sum(count for _, count in kept.values())
    inputs = len(x)
    held = sum(parameter.numel() for parameter in parameters.values())
    return Size(held, counter.flops // inputs, numbers // inputs, math.prod(output.shape[1:]))


def storage(tensor: Tensor) -> int:
    """Return what identifies the memory that a tensor is a view of."""
    identity: int = tensor.untyped_storage()._cdata
    return identity


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating point operations as PyTorch's FlopCounterMode does, without loading its compiler for that."""

    flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=output)
        return output
