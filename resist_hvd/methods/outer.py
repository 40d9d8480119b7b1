"""Momentum of rounds: a step of its own after each round's averages, by how far rounds have brought them.

SlowMo (Wang et al., ICLR 2020), algorithm 1, with alpha = 1: x is what a round begins with, a the average at its end, g
its mean learning rate, and

    d <- beta * (g / g of the round before) * d + (x - a);  x <- x - d

Nothing is sent for it. What all workers share, all know. A block's d is, after such a step, what x was less what it has
become: so it is known to whoever has held the block before and after the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resist_hvd.comm.changes import ChangesAverage
from resist_hvd.methods.state import Moves, NamedPieces


class Pace:
    """The share of the last step that a round repeats.

    Args:
        beta: above 0, below 1.

    Attributes:
        rate: g of the last round, [1], float64; 0 before the first.
        factor: beta * (g / g of the round before); 0 in the first round.
    """

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self.rate = torch.zeros(1, dtype=torch.float64)
        self.factor = 0.0

    def take(self, rate: float) -> None:
        """Take note of the mean learning rate of a round that has been trained."""
        last = float(self.rate)
        self.factor = self._beta * rate / last if last > 0 else 0.0
        self.rate.fill_(rate)


class OuterMomentum:
    """Outer momentum on a buffer that is equal on all workers, each of which computes it. It takes two more of them.

    Args:
        flat: the buffer; its present content, equal on all workers, is the first x.
        beta: above 0, below 1.
        changes: by what the buffer's changes are encoded, if they are: they go on from x.

    Attributes:
        before: x, what the round has begun with, [n].
        step: d, laid out like the buffer, [n].
        pace: what share of d is repeated.
    """

    def __init__(self, flat: Tensor, beta: float, changes: ChangesAverage | None) -> None:
        self._flat, self._changes = flat.detach(), changes
        self.before = self._flat.clone()
        self.step = torch.zeros_like(self._flat)
        self.pace = Pace(beta)

    @property
    def tensors(self) -> NamedPieces:
        """Everything that the next step depends on beside the buffer, by the names that a checkpoint has for it."""
        return {"outer.step": [self.step], "outer.rate": [self.pace.rate]}

    def take(self) -> None:
        """Go on from the average that the buffer holds."""
        self.step.mul_(self.pace.factor).add_(self.before).sub_(self._flat)
        torch.sub(self.before, self.step, out=self._flat)
        self.begin_here()

    def begin_here(self) -> None:
        """Take the buffer's present content, equal on all workers, for what the next round begins with."""
        self.before.copy_(self._flat)
        if self._changes is not None:
            self._changes.follow()

    def restart(self) -> None:
        """Count as if no round had been made: the buffer's numbers mean something else now."""
        self.step.zero_()
        self.pace.rate.zero_()
        self.begin_here()


class BlockMomentum:
    """Outer momentum on the blocks in a worker's slots, as far as workers that kept them know d. It takes two of each.

    x - d is a - beta * (g / g of the round before) * d with the last step's d. So who knows it takes it off its copy
    before copies are averaged, as often as makes up for holders who do not know it; and what the average arrives as is
    the new x. The step of a block that nobody has kept is a plain average, and momentum on it begins anew.

    Args:
        slots: the blocks, a flat buffer each; their present content, equal on all holders, is the first x.
        beta: above 0, below 1.

    Attributes:
        before: x of each slot's block, [n] each.
        step: the last step's d of each, zero where this worker does not know it.
        weights: [slots], a block's holders over those of them who know its d; 0 where this worker does not; float64.
        pace: what share of d is repeated.
    """

    def __init__(self, slots: Sequence[Tensor], beta: float) -> None:
        self._slots = [slot.detach() for slot in slots]
        self.before = [slot.clone() for slot in self._slots]
        self.step = [torch.zeros_like(slot) for slot in self._slots]
        self.weights = torch.zeros(len(self._slots), dtype=torch.float64)
        self.pace = Pace(beta)

    @property
    def tensors(self) -> NamedPieces:
        """Everything that the next step depends on beside the slots, by name."""
        names = "outer.blocks.step", "outer.blocks.weights", "outer.blocks.rate"
        return dict(zip(names, (self.step, [self.weights], [self.pace.rate]), strict=True))

    def lean(self) -> None:
        """Have the blocks' averages, which are about to be made, be the step's result."""
        for slot, step, weight in zip(self._slots, self.step, self.weights.tolist(), strict=True):
            if weight:
                slot.sub_(step, alpha=weight * self.pace.factor)

    def take(self, moves: Moves, weights: Sequence[float]) -> None:
        """Take note of the step that was made.

        Args:
            moves: for each slot where its block was.
            weights: for each slot, as the attribute has it.
        """
        for slot, step, old in zip(self._slots, self.step, moves, strict=True):
            if old is None:
                step.zero_()
            else:
                torch.sub(self.before[old], slot, out=step)
        self.weights.copy_(torch.tensor(weights, dtype=torch.float64))
        self.begin_here()

    def restart(self) -> None:
        """Count as if no round had been made: the slots' numbers mean something else now."""
        for step in self.step:
            step.zero_()
        self.weights.zero_()
        self.pace.rate.zero_()
        self.begin_here()

    def begin_here(self) -> None:
        """Take the slots' present content, equal on all holders, for what the next round begins with."""
        for slot, before in zip(self._slots, self.before, strict=True):
            before.copy_(slot)
