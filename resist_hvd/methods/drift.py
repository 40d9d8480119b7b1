"""Parameters that all workers share, where each goes on while they are averaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from resist_hvd.comm.changes import ChangesAverage, EncodedShift
from resist_hvd.comm.shift import Shift
from resist_hvd.comm.transport import Transport
from resist_hvd.errors import UserError

AT_ONCE = 2**20
"""Numbers that are swapped at a time."""


class Drift:
    """This worker's copy of what all share: the last average, and what it has trained since that departed.

    Args:
        flat: the copy.
        spare: a buffer like it.
        transport: averages it.
        name: of the average, the same on all ranks.
        changes: by what its changes are encoded, if they are.

    Attributes:
        own: where the copy is at present.
        under_way: whether an average has departed and not arrived.
    """

    def __init__(
        self, flat: Tensor, spare: Tensor, transport: Transport, name: str, changes: ChangesAverage | None
    ) -> None:
        self._flat, self._spare = flat, spare
        self._transport = transport
        self._name = name
        self._shift = transport.make_shift(spare, f"{name}.early", changes)
        self.own = flat
        self.under_way = False

    def depart(self) -> Shift | EncodedShift:
        """Have a snapshot of the copy averaged beside the steps that follow; return what has to be advanced."""
        self._spare.copy_(self._flat)
        self._transport.begin_shift(self._shift)
        self.under_way = True
        return self._shift

    def arrive(self) -> None:
        """Go on from the average and what was trained since, once the shift is done."""
        self._shift.finish()
        self._flat.add_(self._spare)
        self.under_way = False

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the parameters be the average of all workers' copies; all ranks call it together, between rounds.

        Raises:
            UserError: on every rank, where an average is under way.
        """
        if self.under_way:
            raise UserError(
                "A synchronisation is under way beside these steps, so there is no global network now",
                mend="Evaluate and save at a round's end, where Rounds.step returns a record.",
                everywhere=True,
            )
        self._spare.copy_(self._flat)
        self._transport.finish(self._transport.start_average(self._spare, self._name))
        swap(self._flat, self._spare)
        self.own = self._spare
        try:
            yield
        finally:
            swap(self._flat, self._spare)
            self.own = self._flat


def swap(one: Tensor, other: Tensor) -> None:
    """Exchange the content of two flat buffers, in the memory of a part of one."""
    for mine, theirs in zip(torch.split(one, AT_ONCE), torch.split(other, AT_ONCE), strict=True):
        kept = mine.clone()
        mine.copy_(theirs)
        theirs.copy_(kept)
