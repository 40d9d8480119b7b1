"""The global network, gathered from all workers: what only a test may do."""

import torch
from torch import Tensor

from resist_hvd.comm.world import World
from resist_hvd.methods.base import Method


def named_parameters(method: Method) -> dict[str, Tensor]:
    """Copies of a worker's parameters, by their names in the global network."""
    return {
        part.prefixed(name): parameter.detach().clone()
        for part, module in method.subnet.held(method.blocks)
        for name, parameter in module.named_parameters()
    }


def assemble(method: Method, world: World) -> dict[str, Tensor]:
    """The global network's parameters by name, on every rank; all holders of a parameter must have the same."""
    # Arrays are pickled many times faster than tensors.
    everyone = world.gather_objects({name: value.numpy() for name, value in named_parameters(method).items()})
    assembled: dict[str, Tensor] = {}
    for rank, theirs in enumerate(everyone):
        for name, array in theirs.items():
            value = torch.from_numpy(array)
            first = assembled.setdefault(name, value)
            assert torch.equal(first, value), f"rank {rank} has another {name} than the ranks before it"
    return assembled
