"""Numbers that a worker's optimizer keeps of earlier gradients, by name: what becomes of them when blocks move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from resist_hvd.nets.subnet import SubNet

NamedPieces = dict[str, list[Tensor]]
"""Flat tensors by name, each as the pieces of memory that its numbers lie in, in order."""

Moves = Sequence[int | None]
"""For each slot of a sub-network the slot in which its block was before, None where the block has arrived."""


class OptimizerState(ABC):
    """State of a worker's optimizer."""

    @abstractmethod
    def restart(self) -> None:
        """Begin anew, as an optimizer that has not seen any gradient."""

    @abstractmethod
    def carry(self, moves: Moves) -> None:
        """Follow the trunk and the blocks that stay; a block that has arrived begins anew."""


class FlatState(OptimizerState):
    """State in buffers that are laid out like a sub-network's parameters.

    To restart is to say so: filling buffers with zeros would cost a pass over memory in every round.

    Args:
        subnet: whose parameters are optimised.
        names: of the buffers: momentum for SGD, exp_avg and exp_avg_sq for AdamW.

    Attributes:
        buffers: by name, [P] each.
        steps: [1 + slots], the updates that the trunk and the block in each slot have had since they began; float32.
        fresh: whether all count as zero, whatever they hold.
    """

    def __init__(self, subnet: SubNet, names: Sequence[str]) -> None:
        self._subnet = subnet
        self.buffers = {name: torch.zeros_like(subnet.parameters_flat) for name in names}
        self.steps = torch.zeros(1 + len(subnet.slots), device=subnet.parameters_flat.device)
        self.fresh = True

    def restart(self) -> None:
        """Count as zero from now on."""
        self.fresh = True

    def clear(self, zero: float = 0.0) -> None:
        """Make zeros of what counts as zero; -0.0 is the zero to which nothing adds without being itself."""
        if self.fresh:
            for buffer in self.buffers.values():
                buffer.fill_(zero)
            self.steps.zero_()
            self.fresh = False

    def carry(self, moves: Moves) -> None:
        """Move the numbers of blocks that stay to their slots; those of a block that has arrived are zero."""
        for buffer in self.buffers.values():
            rearrange(self._subnet, buffer, moves)
        before = self.steps.tolist()
        self.steps[1:] = torch.tensor([0.0 if old is None else before[1 + old] for old in moves])

    def take_over(self, other: FlatState, blocks: Sequence[int]) -> None:
        """Take the numbers of the trunk, and of the blocks in this state's slots, from a state of all blocks."""
        self.fresh = other.fresh
        for name, buffer in self.buffers.items():
            copy_share(self._subnet, buffer, other._subnet, other.buffers[name], blocks)
        self.steps[0] = other.steps[0]
        for slot, block in enumerate(blocks):
            self.steps[1 + slot] = other.steps[1 + block]

    def pieces(self) -> NamedPieces:
        """Return what a checkpoint has of this state; nothing where it counts as zero.

        SGD's updates are not counted, and its files are what earlier versions wrote.
        """
        if self.fresh:
            return {}
        named = {name: self._subnet.pieces(buffer) for name, buffer in self.buffers.items()}
        return named if set(named) <= {"momentum"} else {**named, "steps": [self.steps]}


class TorchState(OptimizerState):
    """State of an optimizer of PyTorch's: what it keeps of each parameter, whatever that is.

    Args:
        optimizer: of the sub-network's parameters.
        subnet: the sub-network.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, subnet: SubNet) -> None:
        self._optimizer = optimizer
        self._slots = [list(module.parameters()) for module in subnet.slot_modules]

    def restart(self) -> None:
        """Have the optimizer forget all that it keeps."""
        self._optimizer.state.clear()

    def carry(self, moves: Moves) -> None:
        """Give what is kept of a block's parameters to those of the slot that it is in now."""
        state = self._optimizer.state
        kept = [[state.pop(parameter, None) for parameter in slot] for slot in self._slots]
        for slot, old in zip(self._slots, moves, strict=True):
            for parameter, own in zip(slot, [] if old is None else kept[old], strict=False):
                if own is not None:
                    state[parameter] = own


def rearrange(subnet: SubNet, flat: Tensor, moves: Moves) -> None:
    """Move what lies in a buffer's slots to the slots where its blocks are now; where one has arrived, put zeros.

    Gradients, which no one needs between rounds, are the memory that it goes by.
    """
    _, slots = subnet.cut(flat)
    for slot, old in enumerate(moves):
        if old is not None and old != slot:
            subnet.slot_gradients[slot].copy_(slots[old])
    for slot, old in enumerate(moves):
        if old is None:
            slots[slot].zero_()
        elif old != slot:
            slots[slot].copy_(subnet.slot_gradients[slot])


def copy_share(subnet: SubNet, flat: Tensor, whole: SubNet, whole_flat: Tensor, blocks: Sequence[int]) -> None:
    """Copy the trunk and the given blocks from a buffer of the whole network into one of a sub-network."""
    (trunk, slots), (whole_trunk, whole_slots) = subnet.cut(flat), whole.cut(whole_flat)
    trunk.copy_(whole_trunk)
    for slot, block in zip(slots, blocks, strict=True):
        slot.copy_(whole_slots[block])
