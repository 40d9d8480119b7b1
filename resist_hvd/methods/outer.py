"""Momentum of rounds: a step of its own on what all workers share, by how far each round has brought it."""

from __future__ import annotations

import torch
from torch import Tensor

from resist_hvd.comm.changes import ChangesAverage
from resist_hvd.methods.state import NamedPieces


class OuterMomentum:
    """Outer momentum on a buffer that is equal on all workers (SlowMo: Wang et al., ICLR 2020, algorithm 1, alpha = 1).

    With x the buffer when a round begins, a its average at the round's end and g the round's mean learning rate:

        d <- beta * (g / g of the round before) * d + (x - a);  x <- x - d

    Every worker computes it from what all have, so nothing is sent. It takes the memory of two more such buffers.

    Args:
        flat: the buffer; its present content, equal on all workers, is the first x.
        beta: above 0, below 1.
        changes: by what the buffer's changes are encoded, if they are: they go on from x.

    Attributes:
        before: x, what the round has begun with, [n].
        step: d, laid out like the buffer, [n].
        rate: g of the last round, [1], float64; 0 before the first.
    """

    def __init__(self, flat: Tensor, beta: float, changes: ChangesAverage | None) -> None:
        self._flat, self._beta, self._changes = flat.detach(), beta, changes
        self.before = self._flat.clone()
        self.step = torch.zeros_like(self._flat)
        self.rate = torch.zeros(1, dtype=torch.float64)

    @property
    def tensors(self) -> NamedPieces:
        """Everything that the next step depends on beside the buffer, by the names that a checkpoint has for it."""
        return {"outer.step": [self.step], "outer.rate": [self.rate]}

    def take(self, rate: float) -> None:
        """Go on from the average that the buffer holds.

        Args:
            rate: the round's mean learning rate.
        """
        last = float(self.rate)
        factor = self._beta * rate / last if last > 0 else 0.0
        self.step.mul_(factor).add_(self.before).sub_(self._flat)
        torch.sub(self.before, self.step, out=self._flat)
        self.rate.fill_(rate)
        self.begin_here()

    def begin_here(self) -> None:
        """Take the buffer's present content, equal on all workers, for what the next round begins with."""
        self.before.copy_(self._flat)
        if self._changes is not None:
            self._changes.follow()

    def restart(self) -> None:
        """Count as if no round had been made: the buffer's numbers mean something else now."""
        self.step.zero_()
        self.rate.zero_()
        self.begin_here()
