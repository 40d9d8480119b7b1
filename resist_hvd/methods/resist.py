"""ResIST (Algorithm 1 of the paper): independent sub-networks, aggregated and dealt anew at each round's end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from resist_hvd.comm.courier import Courier
from resist_hvd.comm.transport import PendingAverage, Transport
from resist_hvd.methods.base import OWN, Method, Setup
from resist_hvd.methods.drift import Drift
from resist_hvd.methods.local_sgd import LocalSGD
from resist_hvd.methods.state import FlatState, NamedPieces, copy_share
from resist_hvd.protocol.exchange import exchange
from resist_hvd.protocol.hands import give


class Resist(Method):
    """Train a sub-network for l local iterations; then average, exchange blocks, and begin a new round.

    Args:
        setup: what it is made from.
        seed: of the first round's partition, the same on every rank.
    """

    def __init__(self, setup: Setup, seed: int) -> None:
        super().__init__(setup)
        self.scales = setup.scales
        self.partition = self.rule.deal(seed)
        self.transport = Transport(setup.world, self.rule.groups, block_codec=setup.exchange.blocks)
        self.subnet = setup.make_subnet(self.rule.depths, self.blocks)
        self.optimizer_state = setup.optimizer_state(self.subnet)
        self.changes = self.transport.count_changes(self.subnet.trunk, "trunk", setup.exchange.trunk)
        slots = accumulate(self.rule.depths, initial=0)
        self._block_sizes = tuple(
            self.subnet.slots[slot].numel()
            for slot, blocks in zip(slots, self.rule.decks, strict=False)
            for _ in range(blocks)
        )
        self._drift: Drift | None = None
        self._next = self.partition
        self._averaging: PendingAverage | None = None
        self._courier: Courier | None = None
        if setup.overlap:
            self.make_room()

    @classmethod
    def begin(cls, setup: Setup, *, seed: int, samples: int = 0) -> Method:
        """Return ResIST, or the warm-up that precedes it."""
        return cls(setup, seed) if samples >= setup.warmup_samples else WarmUp(setup, seed=seed)

    def make_room(self) -> None:
        """Take the memory of one more trunk."""
        trunk = self.subnet.trunk
        self._drift = Drift(trunk, torch.zeros_like(trunk), self.transport, "trunk", self.changes)
        self.overlaps = True

    def depart(self, seed: int, *, early: bool = False) -> None:
        """Begin to average the trunk among all, and deal anew, so that the most of what workers hold stays.

        If steps follow, the trunk goes on, and gains the average minus what it is now. Blocks that are averaged or move
        stand still, so that their holders' copies stay alike, and the next holders get what the last ones had.
        """
        self._next = give(self.rule, self.partition, self.rule.deal(seed), self._block_sizes)
        if early and self._drift is not None:
            leaving = self.partition.leaving(self._next)
            self.subnet.freeze(slot for slot, block in enumerate(self.blocks) if block in leaving)
            self._courier = Courier(self.setup.world, {"trunk": self._drift.depart()})
        else:
            self._averaging = self.transport.start_average(self.subnet.trunk, "trunk", self.changes, exact=self.exact)

    def arrive(self) -> None:
        """Average shared blocks among their holders; send every block to its next holders; wait for the trunk.

        Blocks, and copies that are to be averaged, arrive in the gradients' buffer, which no one needs between rounds,
        so that an exchange takes no memory of its own.
        """
        before, after = self.partition, self._next
        held = self.slots
        old_slot = {block: slot for slot, block in enumerate(held)}
        moves = [old_slot.get(block) for block in after.held[self.setup.world.rank]]
        self.partition = after
        self.subnet.freeze(())
        landing = list(zip(self.blocks, moves, self.subnet.slots, self.subnet.slot_gradients, strict=True))
        arriving = {block: gradients for block, old, _, gradients in landing if old is None}
        free = [gradients for _, old, _, gradients in landing if old is not None]
        scratch = [*free, self.subnet.trunk_gradients]
        self.transport.exchange(exchange(before, after), held, arriving, scratch, exact=self.exact)
        # A block that stays in another slot goes by the gradients' buffer too, since its place may still be another's.
        for slot, (_, old, _, gradients) in enumerate(landing):
            if old is not None and old != slot:
                gradients.copy_(self.subnet.slots[old])
        for slot, (_, old, parameters, gradients) in enumerate(landing):
            if old != slot:
                parameters.copy_(gradients)
        if self.setup.momentum == "keep":
            self.optimizer_state.carry(moves)
        else:
            self.optimizer_state.restart()
        if self._courier is not None and self._drift is not None:
            self._courier.finish()
            self._courier = None
            self._drift.arrive()
        else:
            self.transport.finish(self._averaging)

    def averaged(self) -> AbstractContextManager[None]:
        """Have the average of all workers' trunks be in the place of this one's."""
        return super().averaged() if self._drift is None else self._drift.averaged()

    def own_by_this_worker(self) -> NamedPieces:
        """Return this worker's trunk, where it is not that of all, and what encoded averages keep."""
        own = {} if self._drift is None else {f"{OWN}trunk": [self._drift.own]}
        return super().own_by_this_worker() | own

    def lent(self) -> Iterator[nn.Module]:
        """Yield the blocks of the scaled global network, each sent to all by its first holder."""
        slots, holders = self.slots, self.partition.holders

        def bring(block: int, flat: Tensor) -> None:
            if block in slots:
                flat.copy_(slots[block])
            self.transport.broadcast(flat, root=holders[block][0])

        return self.scaled_blocks(bring)


class WarmUp(LocalSGD):
    """Local SGD on the whole, scaled network for the first samples, which then hands over to ResIST (section 2.6).

    Args:
        setup: what it is made from.
        seed: of ResIST's first partition, were it to take over at once; the same on every rank.
    """

    trains_scaled = True

    def __init__(self, setup: Setup, *, seed: int) -> None:
        # Steps that hide its averages would take the memory of one more whole network.
        super().__init__(replace(setup, overlap=False), scales=setup.scales)
        self._setup_of_heir = setup
        self._seed = seed

    def depart(self, seed: int, *, early: bool = False) -> None:
        """Begin to average all parameters; should ResIST take over then, it begins with the seed's partition.

        So each round has its own partition, whether the run goes on from a checkpoint or never stopped.
        """
        super().depart(seed, early=early)
        self._seed = seed

    def hands_over(self, samples: int) -> bool:
        """Return whether the warm-up is over."""
        return samples >= self.setup.warmup_samples

    def successor(self, samples: int) -> Method | None:
        """Return ResIST on the averaged network once the warm-up is over: every worker keeps the blocks dealt to it.

        Nothing is sent: all workers hold the whole network, averaged, at the end of a round.
        """
        if not self.hands_over(samples):
            return None
        heir = Resist(self._setup_of_heir, self._seed)
        copy_share(heir.subnet, heir.subnet.parameters_flat, self.subnet, self.subnet.parameters_flat, heir.blocks)
        heir.count_changes()
        if self.setup.momentum == "keep":
            old, new = self.optimizer_state, heir.optimizer_state
            if isinstance(old, FlatState) and isinstance(new, FlatState):
                new.take_over(old, heir.blocks)
        return heir


METHOD = Resist
