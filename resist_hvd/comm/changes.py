"""Averages of a buffer that all ranks have, by what has changed since the last one, encoded in few bits.

All ranks know the last average, the reference. So each encodes what has become of it since, and sends every part of
these codes to the part's owner, which decodes and adds them up with its own change, divides, and encodes the mean; its
codes go to all. Everyone, the owner too, adds the decoded mean to the reference: so all ranks keep the same bits.

What encoding leaves out is added to what is encoded next time, by each rank for its changes and by each owner for its
means (error feedback: Seide et al., 1-Bit Stochastic Gradient Descent, 2014; on both sides: Tang et al., DoubleSqueeze,
2019). So it comes late, but nothing is lost. An owner counts S times what was left of a mean as its own: so it does not
matter who is the owner next time.

Codes travel as those of blocks do that all ranks hold before and after. The buffer is cut into a few such pieces, so
that the means of one are sent beside the changes of the next, and a change is encoded right before it leaves.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from resist_hvd.comm.blocks import Mail, Message, Numbers, PendingExchange
from resist_hvd.comm.codec import Codec
from resist_hvd.comm.world import World
from resist_hvd.protocol.exchange import Fetch, Share
from resist_hvd.protocol.pieces import Pieces

PIECES, LEAST_BYTES = 16, 16 * 2**10
"""Most pieces of a buffer, and least bytes of a message: of more and smaller ones, what comes with each counts."""


class ChangesAverage:
    """The average of one buffer; one is under way at a time.

    Args:
        world: all workers; more than one.
        flat: the buffer, contiguous, float32; its present content, equal on all ranks, is the first reference.
        codec: encodes changes and means.
        staged: whether codes pass through host memory on their way.
        window: how many chunks this rank may have under way, where messages travel between hosts; None where none does.

    Attributes:
        reference: the average that all ranks know, [n].
        left: what this rank has still to send, of its changes and of the means that it has encoded, [n].
        bytes_sent: payload of one average.
    """

    def __init__(self, world: World, flat: Tensor, codec: Codec, *, staged: bool, window: int | None) -> None:
        self._world, self._codec, self._window = world, codec, window
        self._flat = flat.detach()
        self.reference = self._flat.clone()
        self.left = torch.zeros_like(self.reference)
        self._work = torch.empty(min(codec.piece, len(flat)), device=flat.device)
        groups, size = -(-len(flat) // codec.group), world.size
        count = min(PIECES, max(1, groups * codec.record // (size * LEAST_BYTES)))
        self._pieces = pieces = Pieces(groups, size, count)
        own = pieces.owned(world.rank)
        # Codes of this rank's changes; of all means; and of others' changes of its own parts, one rank after the other.
        sizes = groups * codec.record, groups * codec.record, own * (size - 1) * codec.record
        self._codes = [torch.empty(size, dtype=torch.uint8, device=flat.device) for size in sizes]
        self._hosts = [torch.empty_like(c, device="cpu", pin_memory=c.is_cuda) if staged else c for c in self._codes]
        self._mail = Mail(world.comm.Dup(), {tuple(range(size)): world.comm.Dup()}, world.activity.progress)
        self._travel: Travel | None = None
        self._into, self._minus = self._flat, False
        self.bytes_sent = (groups - own + own * (size - 1)) * codec.record

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next average depends on beside the buffer, by name."""
        return {"reference": self.reference, "left": self.left}

    def begin(self, flat: Tensor, *, minus: bool = False) -> None:
        """Begin to encode what has changed, and to send it to the owners.

        Args:
            flat: the buffer, or a copy: it is in use until the average, or the average minus what is in it, is there.
            minus: less what is in the buffer.
        """
        self._into, self._minus = flat, minus
        self._travel = Travel(self, self._world.rank, self._pieces, self._mail, self._window)

    def advance(self) -> bool:
        """Send and take in what has become ready, without waiting; return whether the average is there."""
        if self._travel is not None and self._travel.advance():
            self._travel = None
        return self._travel is None

    def wait(self) -> None:
        """Wait until the average is there."""
        if self._travel is not None:
            self._travel.finish()
            self._travel = None

    def add_what_is_left(self, flat: Tensor) -> None:
        """Add to the buffer what was still to be sent, before all ranks average it as it is."""
        flat.add_(self.left)

    def restart(self) -> None:
        """Take the buffer's present content, equal on all ranks, for the reference; nothing is left to be sent."""
        self.reference.copy_(self._flat)
        self.left.zero_()

    def follow(self) -> None:
        """Take the buffer's present content, equal on all ranks, for the reference; what is left is sent as before."""
        self.reference.copy_(self._flat)

    # -- what a travel asks for ------------------------------------------------------------------------------------

    def codes_of(self, message: Message) -> Tensor:
        """Return the codes of a message where MPI sends or fills them."""
        return self._hosts[isinstance(message, Fetch)][self._bytes(self._pieces.part(message.block, message.part))]

    def copy_of(self, piece: int, rank: int) -> Tensor:
        """Return where the codes come of another rank's changes of this rank's part of a piece."""
        return self._hosts[2][self._bytes(self._pieces.copy(piece, rank, self._world.rank))]

    def encode(self, share: Share) -> None:
        """Encode this rank's change of a part, and what was left of it before."""
        groups = self._pieces.part(share.block, share.part)
        for numbers, codes in self._chunks(groups):
            self._codec.encode(self._change(numbers, self.left[numbers]), self._codes[0][codes], subtract=True)
        self._to_host(0, self._bytes(groups))

    def average(self, piece: int) -> None:
        """Average all changes of this rank's part of a piece, encode their mean, and go on from it."""
        codec, size, me, pieces = self._codec, self._world.size, self._world.rank, self._pieces
        groups = pieces.part(piece, me)
        copies = [pieces.copy(piece, rank, me) for rank in range(size) if rank != me]
        for copy in copies:
            self._from_host(2, self._bytes(copy))
        for numbers, codes in self._chunks(groups):
            mean = self._change(numbers, self.left[numbers])
            for copy in copies:
                at = codes.start + (copy.start - groups.start) * codec.record
                codec.decode(self._codes[2][at : at + codes.stop - codes.start], mean, add=True)
            codec.encode(mean.mul_(1 / size), self._codes[1][codes], subtract=True)
            mean.mul_(size)
            self._go_on(numbers, codes)
        self._to_host(1, self._bytes(groups))

    def take_in(self, fetch: Fetch) -> None:
        """Go on from the mean of a part, which has come."""
        groups = self._pieces.part(fetch.block, fetch.part)
        self._from_host(1, self._bytes(groups))
        for numbers, codes in self._chunks(groups):
            self._go_on(numbers, codes)

    def _change(self, numbers: slice, left: Tensor) -> Tensor:
        """Add to what is left what has changed since the last average."""
        change = torch.sub(self._into[numbers], self.reference[numbers], out=self._work[: len(left)])
        return left.add_(change)

    def _go_on(self, numbers: slice, codes: slice) -> None:
        reference, into = self.reference[numbers], self._into[numbers]
        self._codec.decode(self._codes[1][codes], reference, add=True)
        if self._minus:
            torch.sub(reference, into, out=into)
        else:
            into.copy_(reference)

    def _chunks(self, groups: slice) -> Iterator[tuple[slice, slice]]:
        """Cut groups into chunks that stay in the cache; yield where their numbers are, and where their codes."""
        codec, each = self._codec, self._codec.piece // self._codec.group
        for first in range(groups.start, groups.stop, each):
            end = min(first + each, groups.stop)
            numbers = slice(first * codec.group, min(end * codec.group, len(self.reference)))
            yield numbers, self._bytes(slice(first, end))

    def _bytes(self, groups: slice) -> slice:
        return slice(groups.start * self._codec.record, groups.stop * self._codec.record)

    def _to_host(self, which: int, codes: slice) -> None:
        if self._hosts[which] is not self._codes[which]:
            self._hosts[which][codes].copy_(self._codes[which][codes])

    def _from_host(self, which: int, codes: slice) -> None:
        if self._hosts[which] is not self._codes[which]:
            self._codes[which][codes].copy_(self._hosts[which][codes])


class Travel(PendingExchange):
    """Codes of changes and of means under way; see `PendingExchange`."""

    by_chunks = False

    def __init__(self, changes: ChangesAverage, rank: int, pieces: Pieces, mail: Mail, window: int | None) -> None:
        self._changes, self._pieces = changes, pieces
        others = [other for other in range(pieces.workers) if other != rank]
        copies = {(n, other): changes.copy_of(n, other) for n in range(pieces.count) for other in others}
        super().__init__(rank, pieces.plan, {}, copies, mail, window)

    def _in_order(self) -> list[Message]:
        return [message for _, message in self._pieces.in_turns]

    def _part(self, message: Message) -> Numbers:
        codes: Numbers = self._changes.codes_of(message).numpy()
        return codes

    def _lands_on_copy(self, fetch: Fetch) -> bool:
        """Return that codes of means land where no others are."""
        return False

    def _prepare(self, message: Message) -> None:
        if isinstance(message, Share):
            self._changes.encode(message)

    def _average(self, share: Share, chunk: int) -> None:
        self._changes.average(share.block)

    def _has_come(self, fetch: Fetch) -> None:
        self._changes.take_in(fetch)


class EncodedShift:
    """Replaces a copy of a buffer by the average of changes minus that copy, as `Shift` does without a codec.

    What is computed, `advance` computes in the thread that calls it.

    Args:
        changes: averages the buffer.
        flat: the copy.

    Attributes:
        bytes_sent: payload of one average.
    """

    def __init__(self, changes: ChangesAverage, flat: Tensor) -> None:
        self.bytes_sent = changes.bytes_sent
        self._changes, self._flat = changes, flat

    def begin(self) -> None:
        """Begin with the copy's present content."""
        self._changes.begin(self._flat, minus=True)

    def advance(self) -> bool:
        """Send and take in what has become ready, without waiting; return whether all has been taken in."""
        return self._changes.advance()

    def finish(self) -> None:
        """Do nothing: a GPU's work was given to the stream that all else is."""
