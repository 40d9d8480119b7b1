"""An ensemble of S shallow networks, trained apart, whose predictions are averaged (the paper's supplement A.2)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from resist_hvd.comm.transport import Transport
from resist_hvd.methods.base import Method, NamedPieces, Setup, Velocity, make_subnet
from resist_hvd.nets.preact_resnet import Block
from resist_hvd.protocol.partition import deal, depth
from resist_hvd.seeds import derive


class Ensemble(Method):
    """Train a network of a sub-network's depth on every worker, and never aggregate."""

    members_apart = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        architecture, world = setup.architecture, setup.world
        depths = [depth(blocks, world.size, setup.min_blocks) for blocks in architecture.decks]
        self.transport = Transport(world)
        self._predictions = Transport(world)
        self.partition = deal(architecture.decks, world.size, setup.min_blocks, derive(setup.seed, "ensemble"))
        self.scales = [1.0] * len(depths)
        self.subnet = make_subnet(setup, depths, self.scales, self.blocks)
        # Members that started alike would end alike: each has an initial trunk of its own.
        seed_of_member = derive(setup.seed, "member", world.rank)
        self.subnet.initialise(seed_of_member, self.blocks, zero_residual=setup.zero_residual)
        self.velocity = Velocity(torch.zeros_like(self.subnet.parameters_flat))

    def synchronise(self, seed: int) -> None:
        """Do nothing: the networks stay apart."""

    def pool(self, scores: Tensor) -> Tensor:
        """Return the logarithm of the class probabilities, averaged over all members."""
        probabilities = functional.softmax(scores, dim=1).contiguous()
        average = self._predictions.start_average(probabilities.view(-1), f"predictions.{len(scores)}")
        self._predictions.finish(average)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()

    def deck(self, section: int) -> Iterator[tuple[str, Block]]:
        """Yield the blocks of this worker's own network; names count its own blocks."""
        shared = self.setup.architecture.leading[section]
        for place, block in enumerate(self.subnet.network.blocks(section)):
            if place >= shared:
                yield f"sections.{section}.{place}", block

    def written_by_this_worker(self) -> dict[str, NamedPieces]:
        """Return this worker's own network: nobody else has any of it."""
        return {f"member-{self.setup.world.rank:04d}": self.read_by_this_worker()}

    def read_by_this_worker(self) -> NamedPieces:
        """Return this worker's own network, under its rank's name."""
        return {f"member.{self.setup.world.rank}": self.subnet.pieces(self.subnet.parameters_flat)}
