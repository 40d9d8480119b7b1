"""An ensemble of S shallow networks, trained apart, whose predictions are averaged (the paper's supplement A.2)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from resist_hvd.comm.transport import Transport
from resist_hvd.methods.base import Method, Setup
from resist_hvd.methods.state import NamedPieces
from resist_hvd.nets.parts import Network
from resist_hvd.seeds import derive


class Ensemble(Method):
    """Train a network of a sub-network's depth on every worker, and never aggregate."""

    members_apart = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.transport = Transport(setup.world)
        self.partition = self.rule.deal(derive(setup.seed, "ensemble"))
        self.scales = (1.0,) * len(self.rule.decks)
        # Members that started alike would end alike: each has an initial trunk of its own.
        seed = derive(setup.seed, "member", setup.world.rank)
        self.subnet = setup.make_subnet(self.rule.depths, self.blocks, seed=seed)
        self.optimizer_state = setup.optimizer_state(self.subnet)
        self._network = setup.network.shallower(self.rule.depths)

    @property
    def network(self) -> Network:
        """The network of a member."""
        return self._network

    def depart(self, seed: int, *, early: bool = False) -> None:
        """Do nothing: the networks stay apart."""

    def arrive(self) -> None:
        """Do nothing."""

    def pool(self, votes: Tensor) -> list[Tensor]:
        """Return the votes of all members."""
        return [own.to(votes.device) for own in self.setup.world.gather_objects(votes.cpu())]

    def lent(self) -> Iterator[nn.Module]:
        """Yield the blocks of this worker's own network."""
        return iter(self.subnet.slot_modules)

    def written_by_this_worker(self) -> dict[str, NamedPieces]:
        """Return this worker's own network: nobody else has any of it."""
        return {f"member-{self.setup.world.rank:04d}": self.read_by_this_worker()}

    def read_by_this_worker(self) -> NamedPieces:
        """Return this worker's own network, under its rank's name."""
        return {f"member.{self.setup.world.rank}": self.subnet.pieces(self.subnet.parameters_flat)}


METHOD = Ensemble
