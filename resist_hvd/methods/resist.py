"""ResIST (Algorithm 1 of the paper): independent sub-networks, aggregated and dealt anew at each round's end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from resist_hvd.comm.transport import Transport
from resist_hvd.methods.base import Method, Setup, Velocity, global_scale, make_subnet
from resist_hvd.methods.local_sgd import LocalSGD
from resist_hvd.nets.preact_resnet import Block
from resist_hvd.nets.subnet import make_block
from resist_hvd.protocol.exchange import exchange
from resist_hvd.protocol.partition import Partition, deal, depth, holder_groups


class Resist(Method):
    """Train a sub-network for l local iterations; then average, exchange blocks, and begin a new round.

    Args:
        setup: what it is made from.
        seed: of the first round's partition, the same on every rank.
    """

    def __init__(self, setup: Setup, seed: int) -> None:
        super().__init__(setup)
        architecture, world = setup.architecture, setup.world
        self.depths = tuple(depth(blocks, world.size, setup.min_blocks) for blocks in architecture.decks)
        self.scales = [global_scale(setup, section, slots) for section, slots in enumerate(self.depths)]
        self.partition = self._deal(seed)
        self.transport = Transport(world, holder_groups(architecture.decks, world.size, setup.min_blocks))
        self.subnet = make_subnet(setup, self.depths, [1.0] * len(self.depths), self.blocks)
        self.velocity = Velocity(torch.zeros_like(self.subnet.parameters_flat))
        self._lent: dict[int, tuple[Block, Tensor]] = {}

    def _deal(self, seed: int) -> Partition:
        return deal(self.setup.architecture.decks, self.setup.world.size, self.setup.min_blocks, seed)

    def synchronise(self, seed: int) -> None:
        """Average the trunk among all and shared blocks among their holders; send every block to its next holders.

        Blocks arrive in the gradients' buffer, which no one needs between rounds, so that an exchange takes no memory
        of its own.
        """
        before, old_blocks = self.partition, self.blocks
        after = self._deal(seed)
        averaging = self.transport.start_average(self.subnet.trunk, "trunk")
        held = dict(zip(old_blocks, self.subnet.slots, strict=True))
        new_blocks = after.held[self.setup.world.rank]
        arriving = {
            block: gradients
            for block, gradients in zip(new_blocks, self.subnet.slot_gradients, strict=True)
            if block not in held
        }
        self.transport.exchange(exchange(before, after), held, arriving)
        self.partition = after
        self._rearrange(old_blocks, self.subnet.slots, arriving)
        self._carry_momentum(old_blocks)
        self.transport.finish(averaging)

    def _rearrange(self, old_blocks: tuple[int, ...], buffers: Sequence[Tensor], arriving: dict[int, Tensor]) -> None:
        """Put the blocks now held into their slots, in depth order: those that stay, and those that arrived.

        A block that stays in another slot goes by the gradients' buffer, since its place may still be another's.
        """
        old_slot = {block: slot for slot, block in enumerate(old_blocks)}
        moved = {}
        for slot, block in enumerate(self.blocks):
            if block in old_slot and old_slot[block] != slot:
                moved[slot] = self.subnet.slot_gradients[slot].copy_(buffers[old_slot[block]])
        for slot, block in enumerate(self.blocks):
            if block in arriving:
                buffers[slot].copy_(arriving[block])
            elif slot in moved:
                buffers[slot].copy_(moved[slot])

    def _carry_momentum(self, old_blocks: tuple[int, ...]) -> None:
        """Restart momentum, or keep it: the trunk's, and that of blocks that stay; a block that arrives has none."""
        if self.setup.momentum == "restart":
            self.velocity.fresh = True
            return
        _, slots = self.subnet.cut(self.velocity.buffer)
        self._rearrange(old_blocks, slots, {})
        for slot, block in enumerate(self.blocks):
            if block not in old_blocks:
                slots[slot].zero_()

    def deck(self, section: int) -> Iterator[tuple[str, Block]]:
        """Yield a section's blocks of the scaled global network, each sent to all by its first holder."""
        architecture = self.setup.architecture
        if section not in self._lent and architecture.decks[section]:
            lent, flat = make_block(architecture, section, self.setup.world.device, self.setup.dtype)
            lent.scale = self.scales[section]
            self._lent[section] = lent, flat
        slots = dict(zip(self.blocks, self.subnet.slots, strict=True))
        first = sum(architecture.decks[:section])
        for place in range(architecture.decks[section]):
            block = first + place
            lent, flat = self._lent[section]
            if block in slots:
                flat.copy_(slots[block])
            self.transport.broadcast(flat, root=self.partition.holders[block][0])
            yield f"sections.{section}.{architecture.leading[section] + place}", lent
        self._lent.pop(section, None)


class WarmUp(LocalSGD):
    """Local SGD on the whole, scaled network for the first samples, which then hands over to ResIST (section 2.6).

    Args:
        setup: what it is made from.
        until: after how many samples, summed over workers, it hands over.
        seed: of ResIST's first partition, were it to take over at once; the same on every rank.
    """

    trains_scaled = True

    def __init__(self, setup: Setup, *, until: int, seed: int) -> None:
        super().__init__(setup, scaled=True)
        self._until = until
        self._seed = seed

    def synchronise(self, seed: int) -> None:
        """Average all parameters among all workers; should ResIST take over now, it begins with the seed's partition.

        So each round has its own partition, whether the run goes on from a checkpoint or never stopped.
        """
        super().synchronise(seed)
        self._seed = seed

    def successor(self, samples: int) -> Method | None:
        """Return ResIST on the averaged network once the warm-up is over: every worker keeps the blocks dealt to it.

        Nothing is sent: all workers hold the whole network, averaged, at the end of a round.
        """
        if samples < self._until:
            return None
        heir = Resist(self.setup, self._seed)
        buffers = [(heir.subnet.parameters_flat, self.subnet.parameters_flat)]
        if self.setup.momentum == "keep":
            buffers.append((heir.velocity.buffer, self.velocity.buffer))
            heir.velocity.fresh = self.velocity.fresh
        for new, old in buffers:
            (new_trunk, new_slots), (old_trunk, old_slots) = heir.subnet.cut(new), self.subnet.cut(old)
            new_trunk.copy_(old_trunk)
            for slot, block in zip(new_slots, heir.blocks, strict=True):
                slot.copy_(old_slots[block])
        return heir
