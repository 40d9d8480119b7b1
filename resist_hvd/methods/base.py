"""Interface of training methods to the loop that drives them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resist_hvd.comm.changes import ChangesAverage
from resist_hvd.comm.transport import Transport
from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.methods.outer import OuterMomentum
from resist_hvd.methods.state import FlatState, NamedPieces, OptimizerState
from resist_hvd.nets.parts import Network, Part
from resist_hvd.nets.subnet import SubNet, make_block, scale_outputs, scale_weights
from resist_hvd.protocol.partition import Partition
from resist_hvd.protocol.rule import Rule
from resist_hvd.settings.exchange import ExchangeSettings
from resist_hvd.settings.run import Momentum


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Settings and surroundings that every method is made from.

    Attributes:
        network: the global network.
        seed: the run's; initial weights and partitions come from it.
        min_blocks: m, the fewest blocks of a deck that a sub-network has.
        momentum: what becomes of the optimizer's state when parameters are averaged and blocks move.
        scale_activations: whether the global network scales its partitioned blocks by k / N.
        optimizer_state: makes the state of the optimizer that trains a sub-network.
        fill: puts weights from elsewhere in place of a part's initial ones; called for each part that a worker begins
            with.
        warmup_samples: for how many samples, summed over workers, local SGD precedes ResIST.
        outer_momentum: beta of outer momentum on what all workers share; 0 for none.
        outer_momentum_blocks: beta of outer momentum on dealt blocks, by workers that keep them; 0 for none.
        overlap: whether steps come between a synchronisation's departure and its arrival.
        keep_filters: the share of filters that a worker of federated dropout has.
        exchange: the codecs of what workers send.
        dtype: of parameters; float32 but in tests.

    Raises:
        UserError: parameters are of a type that a codec does not take.
    """

    network: Network
    world: World
    seed: int
    min_blocks: int = 0
    momentum: Momentum = "restart"
    scale_activations: bool = True
    optimizer_state: Callable[[SubNet], OptimizerState] = lambda subnet: FlatState(subnet, ("momentum",))
    fill: Callable[[Part, nn.Module], None] | None = None
    warmup_samples: int = 0
    outer_momentum: float = 0.0
    outer_momentum_blocks: float = 0.0
    overlap: bool = False
    keep_filters: float = 1.0
    exchange: ExchangeSettings = field(default_factory=ExchangeSettings)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name, chosen in asdict(self.exchange).items():
            if self.exchange.changed(name) and self.dtype != torch.float32:
                raise UserError(
                    f"--exchange.{name} is {chosen}, which encodes float32, and parameters are {self.dtype}",
                    mend="Leave it out.",
                    everywhere=True,
                )

    @property
    def rule(self) -> Rule:
        """The rule by which blocks are dealt."""
        return Rule(self.network.deck_sizes, self.world.size, self.min_blocks)

    @property
    def scales(self) -> tuple[float, ...]:
        """For each deck, by what the global network scales its blocks."""
        rule = self.rule
        return rule.shares if self.scale_activations else (1.0,) * len(rule.decks)

    def make_subnet(
        self, depths: Sequence[int], blocks: Sequence[int], *, scales: Sequence[float] = (), seed: int | None = None
    ) -> SubNet:
        """Return a sub-network with its initial weights.

        Args:
            depths: for each deck how many slots it has.
            blocks: which block each slot holds.
            scales: for each deck by what training scales the blocks in its slots; 1 by default.
            seed: of its weights; the run's by default.
        """
        subnet = SubNet(self.network, depths, scales=scales, device=self.world.device, dtype=self.dtype)
        subnet.initialise(self.seed if seed is None else seed, blocks)
        if self.fill is not None:
            for part, module in subnet.held(blocks):
                self.fill(part, module)
        return subnet


OWN = "own."
"""Begins the names of a worker's own numbers in a checkpoint that are not its optimizer's."""


class Stage(NamedTuple):
    """A part of the network that is evaluated: its name and the like, and its module, until the next is asked for."""

    part: Part
    module: nn.Module


class Method(ABC):
    """One way of training S workers' networks towards a global one.

    Attributes:
        subnet: what this worker trains.
        optimizer_state: what its optimizer keeps of earlier gradients.
        partition: who holds which block this round.
        transport: what moves parameters; its counters are this method's.
        scales: for each deck, by what the network that is evaluated scales its blocks.
        overlaps: whether it has room for steps between a synchronisation's departure and its arrival.
        changes: by what changes of what all workers share are encoded, if they are.
        outer: outer momentum on it, if there is.
        exact: whether the next average is sent as it is, whatever the codec, with all that encoding has left out.
    """

    changes: ChangesAverage | None = None
    outer: OuterMomentum | None = None

    subnet: SubNet
    optimizer_state: OptimizerState
    partition: Partition
    transport: Transport
    scales: Sequence[float]
    overlaps: bool = False

    trains_scaled = False
    """True where those scales are not in the evaluated network alone, but in that which is trained."""

    can_overlap = False
    """True where steps can come between a synchronisation's departure and its arrival, once there is room."""

    members_apart = False
    """True where each worker's network is evaluated by itself, on all inputs, and predictions are pooled."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.rule = setup.rule
        self.exact = False

    @classmethod
    def begin(cls, setup: Setup, *, seed: int, samples: int = 0) -> Method:
        """Return the method by which a run begins, or goes on.

        Args:
            setup: what it is made from.
            seed: of the first partition, the same on every rank.
            samples: how many have been trained already, summed over workers.
        """
        return cls(setup)

    @property
    def network(self) -> Network:
        """The network that is evaluated and exported: the global one."""
        return self.setup.network

    @property
    def blocks(self) -> tuple[int, ...]:
        """The numbers of the blocks in this worker's slots, in depth order."""
        return self.partition.held[self.setup.world.rank]

    @property
    def slots(self) -> dict[int, Tensor]:
        """This worker's slots by the numbers of the blocks in them."""
        return dict(zip(self.blocks, self.subnet.slots, strict=True))

    def hold(self, held: Sequence[Sequence[int]]) -> bool:
        """Take over the partition that a checkpoint was written with; whoever calls it fills the slots.

        Args:
            held: for each worker the numbers of its blocks.

        Returns:
            Whether these workers can hold it; if not, the partition stays.
        """
        found = self.rule.recorded(held)
        self.partition = found or self.partition
        return found is not None

    def rescale(self, before: Sequence[float]) -> bool:
        """Have the evaluated network compute what it did with other scales; the optimizer restarts where they differ.

        The weights that end a block's residual branches take over the difference.

        Args:
            before: those scales.

        Returns:
            Whether any differs.
        """
        if len(before) != len(self.scales):
            raise ValueError(f"{len(before)} scales for {len(self.scales)} decks")
        factors = self.subnet.of_slots([old / new for old, new in zip(before, self.scales, strict=True)])
        if all(factor == 1 for factor in factors):
            return False
        for part, block, factor in zip(self.subnet.slot_parts, self.subnet.slot_modules, factors, strict=True):
            scale_weights(part, block, factor)
        self.optimizer_state.restart()
        if self.outer is not None:
            self.outer.restart()
        return True

    def gradients_ready(self) -> None:
        """Act between a local step's backward pass and its update."""

    @abstractmethod
    def depart(self, seed: int, *, early: bool = False) -> None:
        """Have all that is aggregated or moves leave this worker: the first act of a synchronisation.

        Args:
            seed: of the next round's partition, the same on every rank.
            early: whether steps follow before the second act, as a method that `overlaps` has them.
        """

    @abstractmethod
    def arrive(self) -> None:
        """Wait for what is under way, and hold what the next round trains: the second act."""

    def synchronise(self, seed: int) -> None:
        """Make both acts at once, with no step between them."""
        self.depart(seed)
        self.arrive()

    def make_room(self) -> None:
        """Take the memory that steps between departure and arrival need, where the method can have such steps."""

    def averaged(self) -> AbstractContextManager[None]:
        """Have what all workers share be alike on all of them; all ranks must call it together, between rounds.

        Where steps come between departure and arrival each worker has an own trunk, of which this puts the average in
        its place for the time being.
        """
        return nullcontext()

    def begin_averages_of(self, flat: Tensor) -> None:
        """Make what encodes changes of the buffer that all workers share, equal on all, and its outer momentum."""
        setup = self.setup
        self.changes = self.transport.count_changes(flat, setup.exchange)
        if setup.outer_momentum:
            self.outer = OuterMomentum(flat, setup.outer_momentum, self.changes)

    def begin_here(self) -> None:
        """Take what all workers share as it is now, equal on all, for the last average; nothing is left to be sent."""
        if self.changes is not None:
            self.changes.restart()
        if self.outer is not None:
            self.outer.begin_here()

    def rejoin(self) -> None:
        """Fetch from others what a checkpoint's files did not give; all ranks call it together, once all have read."""

    def begin_outer_step(self, rate: float) -> None:
        """Begin the step of outer momentum, if any, before what was trained at a mean learning rate departs."""
        if self.outer is not None:
            self.outer.pace.take(rate)

    def finish_outer_step(self) -> None:
        """Go on from the averages that have arrived by outer momentum, if any."""
        if self.outer is not None:
            self.outer.take()

    def hands_over(self, samples: int) -> bool:
        """Return whether another method goes on from here once `samples` have been trained."""
        return False

    def successor(self, samples: int) -> Method | None:
        """Return the method that goes on from here once `samples` have been trained, None to stay."""
        return None

    def pool(self, votes: Tensor) -> list[Tensor]:
        """Return the votes that count beside this worker's own; all ranks must call it together."""
        return [votes]

    @abstractmethod
    def lent(self) -> Iterator[nn.Module]:
        """Yield the dealt blocks of the network that is evaluated, in order, each until the next is asked for.

        Blocks that this worker does not hold are lent by a holder. All ranks must walk together.
        """

    def scaled_blocks(self, bring: Callable[[int, Tensor], None]) -> Iterator[nn.Module]:
        """Yield every dealt block of the scaled global network, one after another in the same memory.

        Args:
            bring: fills a flat buffer with the parameters of a block, given by its number.
        """
        number = 0
        for deck, scale in zip(self.network.decks, self.scales, strict=True):
            part = self.network.parts[deck.first]
            module, flat = make_block(self.network, deck, self.setup.world.device, self.setup.dtype)
            if not part.branches:
                scale_outputs(part, module, scale)
            for block in range(number, number + deck.blocks):
                bring(block, flat)
                if part.branches:
                    scale_weights(part, module, scale)
                yield module
            number += deck.blocks

    def stages(self) -> Iterator[Stage]:
        """Yield the network to be evaluated, part by part."""
        shared = [m for part, m in zip(self.subnet.parts, self.subnet.layers, strict=True) if part.deck is None]
        trunk, lent = iter(shared), self.lent()
        for part in self.network.parts:
            yield Stage(part, next(trunk if part.deck is None else lent))

    def written_by_this_worker(self) -> dict[str, NamedPieces]:
        """Return what this worker writes of a checkpoint: file stems, and each file's named flat tensors, in pieces.

        What several workers hold is written by the first of them. Pieces are views: what is loaded into them is
        restored.
        """
        rank = self.setup.world.rank
        files: dict[str, NamedPieces] = {}
        if rank == 0:
            files["trunk"] = {"trunk": [self.subnet.trunk]} | self.shared_state()
        holders = self.partition.holders
        first_held = {f"block.{b}": [slot] for b, slot in self.slots.items() if holders[b][0] == rank}
        if first_held:
            files[f"blocks-{rank:04d}"] = first_held
        return files

    def shared_state(self) -> NamedPieces:
        """Return what all workers have alike beside parameters, as a checkpoint has it. Pieces are views."""
        return {} if self.outer is None else self.outer.tensors

    def own_by_this_worker(self) -> NamedPieces:
        """Return what this worker alone has beside what all share, by names that begin with `OWN`.

        A checkpoint has it. Pieces are views.
        """
        return {f"{OWN}{name}": [tensor] for name, tensor in self.changes.tensors.items()} if self.changes else {}

    def state_in_mid_round(self) -> NamedPieces:
        """Return what this worker goes on from between two steps, beside parameters and the optimizer's state.

        That is with what parameters alone do not tell then. Pieces are views.
        """
        before = {} if self.outer is None else {"outer.before": [self.outer.before]}
        return self.own_by_this_worker() | self.shared_state() | before

    def read_by_this_worker(self) -> NamedPieces:
        """Return the named flat tensors that this worker fills from a checkpoint's shared files."""
        return {"trunk": [self.subnet.trunk], **{f"block.{b}": [slot] for b, slot in self.slots.items()}}
