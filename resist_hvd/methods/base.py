"""Interface of training methods to the loop that drives them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from resist_hvd.comm.transport import Transport
from resist_hvd.comm.world import World
from resist_hvd.nets import Architecture, SubNet
from resist_hvd.nets.preact_resnet import Block, Unit
from resist_hvd.protocol.partition import Partition, recorded
from resist_hvd.settings.run import Momentum

NamedPieces = dict[str, list[Tensor]]
"""Flat tensors by name, each as the pieces of memory that its numbers lie in, in order."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Settings and surroundings that every method is made from.

    Attributes:
        seed: the run's; initial weights and partitions come from it.
        min_blocks: m, the fewest blocks of a deck that a sub-network has.
        momentum: what becomes of momentum when parameters are averaged and blocks move.
        scale_activations: whether the global network scales the output of its partitioned blocks by k / N.
        zero_residual: whether every block begins as the identity.
        dtype: of parameters; float32 but in tests.
    """

    architecture: Architecture
    world: World
    seed: int
    min_blocks: int = 0
    momentum: Momentum = "restart"
    scale_activations: bool = True
    zero_residual: bool = False
    dtype: torch.dtype = torch.float32


@dataclass
class Velocity:
    """Momentum's buffer.

    Attributes:
        buffer: [P], laid out like a sub-network's `parameters_flat`.
        fresh: whether it counts as zero, whatever it holds. To restart momentum is to say so: filling the buffer with
            zeros would cost a pass over memory in every round.
    """

    buffer: Tensor
    fresh: bool = True


class Method(ABC):
    """One way of training S workers' networks towards a global one.

    Attributes:
        subnet: what this worker trains.
        velocity: what the optimizer keeps of earlier gradients.
        partition: who holds which block this round.
        transport: what moves parameters; its counters are this method's.
        scales: for each section, what the network that is evaluated multiplies its partitioned blocks' outputs by.
    """

    subnet: SubNet
    velocity: Velocity
    partition: Partition
    transport: Transport
    scales: Sequence[float]

    trains_scaled = False
    """True where those scales are not in the evaluated network alone, but in that which is trained."""

    members_apart = False
    """True where each worker's network is evaluated by itself, on all images, and predictions are pooled."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @property
    def blocks(self) -> tuple[int, ...]:
        """The numbers of the blocks in this worker's slots, in depth order."""
        return self.partition.held[self.setup.world.rank]

    def hold(self, held: Sequence[Sequence[int]]) -> bool:
        """Take over the partition that a checkpoint was written with; whoever calls it fills the slots.

        Args:
            held: for each worker the numbers of its blocks.

        Returns:
            Whether these workers can hold it; if not, the partition stays.
        """
        setup = self.setup
        found = recorded(held, setup.architecture.decks, setup.world.size, setup.min_blocks)
        self.partition = found or self.partition
        return found is not None

    def rescale(self, before: Sequence[float]) -> bool:
        """Have the evaluated network compute what it did with other scales; momentum restarts where they differ.

        The last convolution of each block takes over the difference.

        Args:
            before: those scales.

        Returns:
            Whether any differs.
        """
        factors = [old / new for old, new in zip(before, self.scales, strict=True)]
        of_slots = [factor for factor, slots in zip(factors, self.subnet.depths, strict=True) for _ in range(slots)]
        if all(factor == 1 for factor in of_slots):
            return False
        for block, factor in zip(self.subnet.slot_modules(), of_slots, strict=True):
            cast(Unit, block.units[-1]).conv.weight.data.mul_(factor)
        self.velocity.fresh = True
        return True

    def gradients_ready(self) -> None:
        """Act between a local step's backward pass and its update."""

    @abstractmethod
    def synchronise(self, seed: int) -> None:
        """End a round: aggregate, and hold what the next round trains.

        Args:
            seed: of the next round's partition, the same on every rank.
        """

    def successor(self, samples: int) -> Method | None:
        """Return the method that goes on from here once `samples` have been trained, None to stay."""
        return None

    def pool(self, scores: Tensor) -> Tensor:
        """Return the scores [batch, classes] that count, of this worker's; all ranks must call it together."""
        return scores

    @abstractmethod
    def deck(self, section: int) -> Iterator[tuple[str, Block]]:
        """Yield the partitioned blocks of a section of the network to be evaluated, with their names, in order.

        Blocks that this worker does not hold are lent by a holder, each until the next is asked for. All ranks must
        walk together.
        """

    def stages(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the network to be evaluated, stage by stage, each with its name in the exported global model."""
        network = self.subnet.network
        yield "stem", network.stem
        for section, shared in enumerate(self.subnet.architecture.leading):
            for place in range(shared):
                yield f"sections.{section}.{place}", network.blocks(section)[place]
            yield from self.deck(section)
        yield "head", network.head

    def written_by_this_worker(self) -> dict[str, NamedPieces]:
        """Return what this worker writes of a checkpoint: file stems, and each file's named flat tensors, in pieces.

        What several workers hold is written by the first of them. Pieces are views: what is loaded into them is
        restored.
        """
        rank = self.setup.world.rank
        files: dict[str, NamedPieces] = {}
        if rank == 0:
            files["trunk"] = {"trunk": [self.subnet.trunk]}
        own = dict(zip(self.blocks, self.subnet.slots, strict=True))
        first_held = {f"block.{b}": [slot] for b, slot in own.items() if self.partition.holders[b][0] == rank}
        if first_held:
            files[f"blocks-{rank:04d}"] = first_held
        return files

    def state_of_this_worker(self) -> NamedPieces:
        """Return this worker's own tensors, for it alone to write and to read again: momentum, if it has any."""
        return {} if self.velocity.fresh else {"momentum": self.subnet.pieces(self.velocity.buffer)}

    def read_by_this_worker(self) -> NamedPieces:
        """Return the named flat tensors that this worker fills from a checkpoint's shared files."""
        blocks = {f"block.{b}": [slot] for b, slot in zip(self.blocks, self.subnet.slots, strict=True)}
        return {"trunk": [self.subnet.trunk], **blocks}


def global_scale(setup: Setup, section: int, depth: int) -> float:
    """Return what the global network scales a partitioned block's output by: k / N, 1 / S where blocks are not shared.

    The paper's section 2.6; with a minimum depth as in the authors' code, but for any number of blocks.
    """
    blocks = setup.architecture.decks[section]
    return depth / blocks if setup.scale_activations and blocks else 1.0


def make_subnet(setup: Setup, depths: Sequence[int], scales: Sequence[float], blocks: Sequence[int]) -> SubNet:
    """Return a sub-network with its initial weights.

    Args:
        setup: the architecture, the seed and the device.
        depths: for each section how many slots it has.
        scales: for each section what its slots' outputs are multiplied by.
        blocks: which block each slot holds.
    """
    subnet = SubNet(setup.architecture, depths, device=setup.world.device, dtype=setup.dtype)
    per_slot = [scale for scale, slots in zip(scales, depths, strict=True) for _ in range(slots)]
    for module, scale in zip(subnet.slot_modules(), per_slot, strict=True):
        module.scale = scale
    subnet.initialise(setup.seed, blocks, zero_residual=setup.zero_residual)
    return subnet
