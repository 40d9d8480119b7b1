"""The global network, gathered from all workers: what only a test may do."""

import numpy as np
import torch
from torch import Tensor

from resist_hvd.comm.world import World
from resist_hvd.methods.base import Method
from resist_hvd.methods.federated_dropout import FederatedDropout
from resist_hvd.nets.subnet import view_as


def named_parameters(method: Method) -> dict[str, Tensor]:
    """Copies of a worker's parameters, by their names in the global network."""
    return {
        part.prefixed(name): parameter.detach().clone()
        for part, module in method.subnet.held(method.blocks)
        for name, parameter in module.named_parameters()
    }


def assemble(method: Method, world: World) -> dict[str, Tensor]:
    """The global network's parameters by name, on every rank; all holders of a parameter must have the same."""
    if isinstance(method, FederatedDropout):
        return joined(method, world)
    # Arrays are pickled many times faster than tensors.
    everyone = world.gather_objects({name: value.numpy() for name, value in named_parameters(method).items()})
    assembled: dict[str, Tensor] = {}
    for rank, theirs in enumerate(everyone):
        for name, array in theirs.items():
            value = torch.from_numpy(array)
            first = assembled.setdefault(name, value)
            assert torch.equal(first, value), f"rank {rank} has another {name} than the ranks before it"
    return assembled


def joined(method: FederatedDropout, world: World) -> dict[str, Tensor]:
    """The whole network of what workers keep of it."""
    kept = {name: piece.numpy() for name, (piece,) in method.read_by_this_worker().items()}
    pieces = {name: piece for own in world.gather_objects(kept) for name, piece in own.items()}
    flat = torch.from_numpy(np.concatenate([pieces[f"piece.{number}"] for number in range(len(pieces))]))
    assembled, first = {}, 0
    for part, module in zip(method.network.parts, method.network.modules, strict=True):
        for name, parameter in module.named_parameters():
            assembled[part.prefixed(name)] = view_as(parameter, flat[first : first + parameter.numel()])
            first += parameter.numel()
    assert first == len(flat)
    return assembled
