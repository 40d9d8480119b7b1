"""ResIST (Algorithm 1 of the paper): independent sub-networks, aggregated and dealt anew at each round's end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from resist_hvd.comm.blocks import PendingExchange
from resist_hvd.comm.courier import Courier, UnderWay
from resist_hvd.comm.encoded_blocks import EncodedExchange
from resist_hvd.comm.transport import PendingAverage, Transport
from resist_hvd.methods.base import OWN, Method, Setup
from resist_hvd.methods.drift import Drift
from resist_hvd.methods.local_sgd import LocalSGD
from resist_hvd.methods.outer import BlockMomentum, OuterMomentum
from resist_hvd.methods.state import FlatState, NamedPieces, copy_share
from resist_hvd.protocol.exchange import Exchange, exchange
from resist_hvd.protocol.hands import give
from resist_hvd.protocol.partition import Partition


@dataclass(frozen=True)
class Passage:
    """A worker's way from one partition to the next.

    Attributes:
        after: the next partition.
        plan: the exchange that leads there.
        blocks: this worker's of the next round, in the order of its slots.
        moves: for each slot of the next round the slot in which its block was before, None where it arrives.
        leaving: all blocks that are averaged or sent, whoever holds them.
        shared: those that are averaged.
    """

    after: Partition
    plan: Exchange
    blocks: tuple[int, ...]
    moves: tuple[int | None, ...]
    leaving: frozenset[int]
    shared: frozenset[int]

    @classmethod
    def between(cls, before: Partition, after: Partition, rank: int) -> Passage:
        """Return the way of the worker of a rank."""
        old_slot = {block: slot for slot, block in enumerate(before.held[rank])}
        return cls(
            after=after,
            plan=exchange(before, after),
            blocks=after.held[rank],
            moves=tuple(old_slot.get(block) for block in after.held[rank]),
            leaving=before.leaving(after),
            shared=frozenset(block for block, holders in enumerate(before.holders) if len(holders) > 1),
        )

    @property
    def arriving(self) -> dict[int, int]:
        """The blocks that this worker receives, by their slots."""
        return {slot: self.blocks[slot] for slot, old in enumerate(self.moves) if old is None}

    @property
    def weights(self) -> list[float]:
        """For each slot of the next round its block's holders over those who keep it; 0 where it arrives."""
        holders, following = self.plan.holders, self.plan.next_holders
        return [
            0.0 if old is None else len(following[block]) / len({*following[block]} & {*holders[block]})
            for block, old in zip(self.blocks, self.moves, strict=True)
        ]

    @property
    def kept_and_shared(self) -> list[int]:
        """The slots of the next round whose blocks this worker has, and others too."""
        return [s for s, old in enumerate(self.moves) if old is not None and self.blocks[s] in self.shared]

    @property
    def given_away(self) -> list[int]:
        """The slots of the last round whose blocks this worker has no more."""
        return [slot for slot in range(len(self.moves)) if slot not in self.moves]


class Resist(Method):
    """Train a sub-network for l local iterations; then average, exchange blocks, and begin a new round.

    Args:
        setup: what it is made from.
        seed: of the first round's partition, the same on every rank.

    Attributes:
        outer_blocks: outer momentum on the blocks in this worker's slots, if there is.
    """

    can_overlap = True

    def __init__(self, setup: Setup, seed: int) -> None:
        super().__init__(setup)
        self.scales = setup.scales
        self.partition = self.rule.deal(seed)
        self.transport = Transport(setup.world, self.rule.groups, block_codec=setup.exchange.blocks)
        self.subnet = setup.make_subnet(self.rule.depths, self.blocks)
        self.optimizer_state = setup.optimizer_state(self.subnet)
        self.begin_averages_of(self.subnet.trunk)
        beta = setup.outer_momentum_blocks
        self.outer_blocks = BlockMomentum(self.subnet.slots, beta) if beta else None
        slots = accumulate(self.rule.depths, initial=0)
        self._block_sizes = tuple(
            self.subnet.slots[slot].numel()
            for slot, blocks in zip(slots, self.rule.decks, strict=False)
            for _ in range(blocks)
        )
        self._drift: Drift | None = None
        self._aside: list[Tensor] = []
        self._landing: dict[int, Tensor] = {}
        self._passage: Passage
        self._exchanging: PendingExchange | EncodedExchange
        self._averaging: PendingAverage | None = None
        self._courier: Courier | None = None
        if setup.overlap:
            self.make_room()

    @classmethod
    def begin(cls, setup: Setup, *, seed: int, samples: int = 0) -> Method:
        """Return ResIST, or the warm-up that precedes it."""
        return cls(setup, seed) if samples >= setup.warmup_samples else WarmUp(setup, seed=seed)

    def make_room(self) -> None:
        """Take the memory of one more trunk, and where blocks are shared that of one more sub-network."""
        subnet = self.subnet
        if self.rule.groups:
            trunk, self._aside = subnet.cut(torch.zeros_like(subnet.parameters_flat))
        else:
            trunk = torch.zeros_like(subnet.trunk)
        self._drift = Drift(subnet.trunk, trunk, self.transport, "trunk", self.changes)
        self.overlaps = True

    def depart(self, seed: int, *, early: bool = False) -> None:
        """Begin to average the trunk among all and shared blocks among their holders; send blocks to their next ones.

        Blocks are dealt anew so that the most of what workers hold stays.

        Blocks, and copies that are to be averaged, arrive in the gradients' buffer, which no one needs between rounds,
        so that an exchange takes no memory of its own.

        If steps follow, the trunk goes on, and gains the average minus what it is now. Blocks that are averaged or move
        stand still, so that their holders' copies stay alike, and the next holders get what the last ones had.
        """
        drift = self._drift if early else None
        if drift is None and not self.transport.between_hosts:
            self._average_trunk()
        after = give(self.rule, self.partition, self.rule.deal(seed), self._block_sizes)
        passage = Passage.between(self.partition, after, self.setup.world.rank)
        if drift is not None:
            self._exchanging = self._exchange_beside_steps(passage)
            under_way: dict[str, UnderWay] = {"blocks": self._exchanging, "trunk": drift.depart()}
            self._courier = Courier(self.setup.world, under_way)
        else:
            self._exchanging = self._exchange(passage)
        self._passage = passage

    def _average_trunk(self) -> None:
        self._averaging = self.transport.start_average(self.subnet.trunk, "trunk", self.changes, exact=self.exact)

    def _exchange(self, passage: Passage) -> PendingExchange | EncodedExchange:
        """Begin the exchange of blocks, with no step before its end."""
        landing = self.subnet.slot_gradients
        free = [gradients for slot, gradients in enumerate(landing) if slot not in passage.arriving]
        self._landing = dict(enumerate(landing))
        arriving = {block: landing[slot] for slot, block in passage.arriving.items()}
        scratch = [*free, self.subnet.trunk_gradients]
        return self.transport.begin_exchange(passage.plan, self.slots, arriving, scratch, exact=self.exact)

    def _exchange_beside_steps(self, passage: Passage) -> PendingExchange | EncodedExchange:
        """Begin the exchange of blocks that stand still while steps are made, in the memory of their gradients.

        A shared block is averaged in a copy, since this worker goes on to compute with what it has. What is left of the
        gradients' memory is for blocks that arrive, and for copies that are to be averaged.
        """
        subnet, blocks = self.subnet, self.blocks
        subnet.freeze(slot for slot, block in enumerate(blocks) if block in passage.leaving)
        held = dict(self.slots)
        for slot, block in enumerate(blocks):
            if block in passage.shared:
                held[block] = subnet.slot_gradients[slot].copy_(subnet.slots[slot])
        room = [subnet.slot_gradients[slot] for slot in passage.given_away if blocks[slot] not in passage.shared]
        room += self._aside
        self._landing = {slot: subnet.slot_gradients[old] for slot, old in enumerate(passage.moves) if old is not None}
        for slot in passage.arriving:
            place = next(n for n, free in enumerate(room) if len(free) == len(subnet.slots[slot]))
            self._landing[slot] = room.pop(place)
        arriving = {block: self._landing[slot] for slot, block in passage.arriving.items()}
        return self.transport.begin_exchange(passage.plan, held, arriving, room, exact=self.exact)

    def arrive(self) -> None:
        """Put what has arrived into its slots, and go on from the trunk's average."""
        passage, courier, subnet = self._passage, self._courier, self.subnet
        if courier is not None:
            courier.finish()
        self.transport.finish_exchange(self._exchanging)
        if courier is None and self.transport.between_hosts:
            # Beside blocks on the same links its ring would wait for them at every step.
            self._average_trunk()
        subnet.freeze(())
        # A block that stays in another slot goes by the gradients' buffer too, since its place may still be another's.
        apart = {*passage.arriving, *(passage.kept_and_shared if courier is not None else ())}
        moved = [slot for slot, old in enumerate(passage.moves) if old != slot or slot in apart]
        for slot in moved:
            if (old := passage.moves[slot]) is not None and slot not in apart:
                self._landing[slot].copy_(subnet.slots[old])
        for slot in moved:
            subnet.slots[slot].copy_(self._landing[slot])
        self.partition = passage.after
        if self.setup.momentum == "keep":
            self.optimizer_state.carry(passage.moves)
        else:
            self.optimizer_state.restart()
        if courier is not None and self._drift is not None:
            self._courier = None
            self._drift.arrive()
        else:
            self.transport.finish(self._averaging)

    def begin_outer_step(self, rate: float) -> None:
        """Begin the steps of outer momentum, if any, before what was trained at a mean learning rate departs."""
        super().begin_outer_step(rate)
        if self.outer_blocks is not None:
            self.outer_blocks.pace.take(rate)
            self.outer_blocks.lean()

    def finish_outer_step(self) -> None:
        """Go on from the averages that have arrived by outer momentum, if any."""
        super().finish_outer_step()
        if self.outer_blocks is not None:
            self.outer_blocks.take(self._passage.moves, self._passage.weights)

    def begin_here(self) -> None:
        """Take what this worker holds as it is now, equal on all who hold it, for what the next round begins with."""
        super().begin_here()
        if self.outer_blocks is not None:
            self.outer_blocks.begin_here()

    def rescale(self, before: Sequence[float]) -> bool:
        """Have the evaluated network compute what it did with other scales; see `Method.rescale`."""
        differs = super().rescale(before)
        if differs and self.outer_blocks is not None:
            self.outer_blocks.restart()
        return differs

    def take_over(self, outer: OuterMomentum, trunk: Tensor, blocks: Sequence[Tensor]) -> None:
        """Go on from outer momentum on the whole network, whose last step is given by what it was on each part."""
        if self.outer is not None:
            self.outer.step.copy_(trunk)
            self.outer.pace.rate.copy_(outer.pace.rate)
        if self.outer_blocks is not None:
            for step, block in zip(self.outer_blocks.step, self.blocks, strict=True):
                step.copy_(blocks[block])
            self.outer_blocks.weights.fill_(1)
            self.outer_blocks.pace.rate.copy_(outer.pace.rate)

    def averaged(self) -> AbstractContextManager[None]:
        """Have the average of all workers' trunks be in the place of this one's."""
        return super().averaged() if self._drift is None else self._drift.averaged()

    def own_by_this_worker(self) -> NamedPieces:
        """Return this worker's trunk, where it is not that of all, outer momentum on blocks, and what codecs keep."""
        own = {} if self._drift is None else {f"{OWN}trunk": [self._drift.own]}
        if self.outer_blocks is not None:
            own |= {f"{OWN}{name}": pieces for name, pieces in self.outer_blocks.tensors.items()}
        return super().own_by_this_worker() | own

    def state_in_mid_round(self) -> NamedPieces:
        """Return what this worker goes on from between two steps, beside parameters and the optimizer's state."""
        before = {} if self.outer_blocks is None else {"outer.blocks.before": self.outer_blocks.before}
        return super().state_in_mid_round() | before

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
    can_overlap = False

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

    def shared_state(self) -> NamedPieces:
        """Return what all workers have alike beside parameters; of outer momentum that is of more than ResIST has."""
        return {name.replace("outer.step", "outer.whole.step"): x for name, x in super().shared_state().items()}

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
        heir.begin_here()
        if self.outer is not None:
            heir.take_over(self.outer, *self.subnet.cut(self.outer.step))
        if self.setup.momentum == "keep":
            old, new = self.optimizer_state, heir.optimizer_state
            if isinstance(old, FlatState) and isinstance(new, FlatState):
                new.take_over(old, heir.blocks)
        return heir


METHOD = Resist
