"""Base of the methods that keep the whole network on every worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from resist_hvd.comm.transport import Transport
from resist_hvd.methods.base import Method, Setup, Velocity, global_scale, make_subnet
from resist_hvd.nets.preact_resnet import Block
from resist_hvd.protocol.partition import depth, replicate


class Replicated(Method):
    """The whole network on every worker: a sub-network with a slot for every block.

    Args:
        setup: what it is made from.
        scaled: whether partitioned blocks are scaled as in ResIST's global network.
    """

    def __init__(self, setup: Setup, *, scaled: bool = False) -> None:
        super().__init__(setup)
        architecture, workers = setup.architecture, setup.world.size
        depths = [depth(blocks, workers, setup.min_blocks) for blocks in architecture.decks]
        self.scales = [global_scale(setup, section, slots) if scaled else 1.0 for section, slots in enumerate(depths)]
        self.partition = replicate(architecture.decks, workers)
        self.transport = Transport(setup.world)
        self.subnet = make_subnet(setup, architecture.decks, self.scales, self.blocks)
        self.velocity = Velocity(torch.zeros_like(self.subnet.parameters_flat))

    def hold(self, held: Sequence[Sequence[int]]) -> bool:
        """Return whether a checkpoint was written by as many workers that all held every block."""
        return [list(own) for own in self.partition.held] == [list(own) for own in held]

    def deck(self, section: int) -> Iterator[tuple[str, Block]]:
        """Yield a section's partitioned blocks, which this worker has itself."""
        shared = self.setup.architecture.leading[section]
        for place, block in enumerate(self.subnet.network.blocks(section)):
            if place >= shared:
                yield f"sections.{section}.{place}", block
