"""Local SGD, the paper's baseline (section 2.4): every worker trains the whole network, averaged after each round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from resist_hvd.comm.courier import Courier
from resist_hvd.comm.transport import PendingAverage, Transport
from resist_hvd.methods.base import OWN, Method, Setup
from resist_hvd.methods.drift import Drift
from resist_hvd.methods.state import NamedPieces


class Replicated(Method):
    """The whole network on every worker: a sub-network with a slot for every block.

    Args:
        setup: what it is made from.
        scales: for each deck, by what training scales its blocks; 1 by default.
    """

    def __init__(self, setup: Setup, *, scales: Sequence[float] = ()) -> None:
        super().__init__(setup)
        self.scales = scales or (1.0,) * len(self.rule.decks)
        self.partition = self.rule.replicated()
        self.transport = Transport(setup.world)
        self.subnet = setup.make_subnet(self.rule.decks, self.blocks, scales=self.scales)
        self.optimizer_state = setup.optimizer_state(self.subnet)

    def hold(self, held: Sequence[Sequence[int]]) -> bool:
        """Return whether a checkpoint was written by as many workers that all held every block."""
        return [list(own) for own in self.partition.held] == [list(own) for own in held]

    def lent(self) -> Iterator[nn.Module]:
        """Yield the dealt blocks, which this worker has itself; copies where their weights do not have the scale."""
        if all(scale == 1 for scale in self.scales):
            return iter(self.subnet.slot_modules)

        def bring(block: int, flat: Tensor) -> None:
            flat.copy_(self.subnet.slots[block])

        return self.scaled_blocks(bring)


class LocalSGD(Replicated):
    """Train the whole network for l local iterations, then average all of it in one collective.

    Where steps come between departure and arrival, it takes the memory of one more network.
    """

    can_overlap = True

    def __init__(self, setup: Setup, *, scales: Sequence[float] = ()) -> None:
        super().__init__(setup, scales=scales)
        flat = self.subnet.parameters_flat
        self.begin_averages_of(flat)
        self._drift: Drift | None = None
        self._averaging: PendingAverage | None = None
        self._courier: Courier | None = None
        if setup.overlap:
            self.make_room()

    def make_room(self) -> None:
        """Take the memory of one more network."""
        flat = self.subnet.parameters_flat
        self._drift = Drift(flat, torch.zeros_like(flat), self.transport, "parameters", self.changes)
        self.overlaps = True

    def depart(self, seed: int, *, early: bool = False) -> None:
        """Begin to average all parameters among all workers; the partition is ever the same, whatever the seed."""
        if early and self._drift is not None:
            self._courier = Courier(self.setup.world, {"trunk": self._drift.depart()})
        else:
            flat = self.subnet.parameters_flat
            self._averaging = self.transport.start_average(flat, "parameters", self.changes, exact=self.exact)

    def arrive(self) -> None:
        """Go on from the average."""
        if self._courier is not None and self._drift is not None:
            self._courier.finish()
            self._courier = None
            self._drift.arrive()
        else:
            self.transport.finish(self._averaging)
        if self.setup.momentum == "restart":
            self.optimizer_state.restart()

    def averaged(self) -> AbstractContextManager[None]:
        """Have the average of all workers' networks be in the place of this one's."""
        return super().averaged() if self._drift is None else self._drift.averaged()

    def own_by_this_worker(self) -> NamedPieces:
        """Return all of this worker's parameters, where they are not those of all, and what encoded averages keep."""
        own = {} if self._drift is None else {f"{OWN}parameters": [self._drift.own]}
        return super().own_by_this_worker() | own


METHOD = LocalSGD
