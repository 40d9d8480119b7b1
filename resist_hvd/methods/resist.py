"""ResIST (Algorithm 1 of the paper): independent sub-networks, aggregated and dealt anew at each round's end."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from resist_hvd.comm.transport import Transport
from resist_hvd.methods.base import Method, Setup
from resist_hvd.methods.local_sgd import LocalSGD
from resist_hvd.methods.state import FlatState, copy_share
from resist_hvd.protocol.exchange import exchange


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
        self.transport = Transport(setup.world, self.rule.groups)
        self.subnet = setup.make_subnet(self.rule.depths, self.blocks)
        self.optimizer_state = setup.optimizer_state(self.subnet)

    @classmethod
    def begin(cls, setup: Setup, *, seed: int, samples: int = 0) -> Method:
        """Return ResIST, or the warm-up that precedes it."""
        return cls(setup, seed) if samples >= setup.warmup_samples else WarmUp(setup, seed=seed)

    def depart(self, seed: int) -> None:
        """Begin to average the trunk among all, and deal anew."""
        self._next = self.rule.deal(seed)
        self._averaging = self.transport.start_average(self.subnet.trunk, "trunk")

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
        landing = list(zip(self.blocks, moves, self.subnet.slots, self.subnet.slot_gradients, strict=True))
        arriving = {block: gradients for block, old, _, gradients in landing if old is None}
        free = [gradients for _, old, _, gradients in landing if old is not None]
        self.transport.exchange(exchange(before, after), held, arriving, [*free, self.subnet.trunk_gradients])
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
        self.transport.finish(self._averaging)

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
        super().__init__(setup, scales=setup.scales)
        self._seed = seed

    def depart(self, seed: int) -> None:
        """Begin to average all parameters; should ResIST take over then, it begins with the seed's partition.

        So each round has its own partition, whether the run goes on from a checkpoint or never stopped.
        """
        super().depart(seed)
        self._seed = seed

    def successor(self, samples: int) -> Method | None:
        """Return ResIST on the averaged network once the warm-up is over: every worker keeps the blocks dealt to it.

        Nothing is sent: all workers hold the whole network, averaged, at the end of a round.
        """
        if samples < self.setup.warmup_samples:
            return None
        heir = Resist(self.setup, self._seed)
        copy_share(heir.subnet, heir.subnet.parameters_flat, self.subnet, self.subnet.parameters_flat, heir.blocks)
        if self.setup.momentum == "keep":
            old, new = self.optimizer_state, heir.optimizer_state
            if isinstance(old, FlatState) and isinstance(new, FlatState):
                new.take_over(old, heir.blocks)
        return heir


METHOD = Resist
