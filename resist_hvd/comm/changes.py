"""Averages of a buffer that all ranks have, by what has changed since the last one, encoded in few bits.

All ranks have gone on from the same average, the reference. So each encodes what has become of it since, and sends
every part of these codes to the part's owner, which decodes and adds them up, divides, and encodes the mean again; its
codes go to all. Everyone, the owner too, adds the decoded mean to the reference: so all ranks keep the same bits.

What encoding leaves out is added to what is encoded next time, by each rank for its changes and by each owner for its
means (error feedback: Seide et al., 1-Bit Stochastic Gradient Descent, 2014; on both sides: Tang et al., DoubleSqueeze,
2019). So it comes late, but nothing is lost.

Codes travel as those of a block do that all ranks hold before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from resist_hvd.comm.blocks import Mail, Message, Numbers, PendingExchange, Window
from resist_hvd.comm.codec import Codec
from resist_hvd.comm.world import World
from resist_hvd.protocol.exchange import Exchange, Share, part_edges
from resist_hvd.protocol.partition import Partition


class ChangesAverage:
    """The average of one buffer; one is under way at a time.

    Args:
        world: all workers; more than one.
        flat: the buffer, contiguous, float32; its present content, equal on all ranks, is the first reference.
        codec: encodes changes and means.
        staged: whether codes pass through host memory on their way.
        window: of this rank, where messages travel between hosts; None where none does.

    Attributes:
        own: the part that this rank owns.
        reference: the average that all ranks have gone on from, [n].
        left: what this rank has still to send of its changes, [n].
        left_of_means: what it has still to send of the means of its own part, about [n / S].
        bytes_sent: payload of one average.
    """

    def __init__(self, world: World, flat: Tensor, codec: Codec, *, staged: bool, window: Window | None) -> None:
        self._world, self._codec, self._window = world, codec, window
        self._flat = flat.detach()
        self.reference = self._flat.clone()
        self.left = torch.zeros_like(self.reference)
        groups = part_edges(-(-len(flat) // codec.group), world.size)
        edges = [min(group * codec.group, len(flat)) for group in groups]
        self._parts = [slice(first, end) for first, end in pairwise(edges)]
        self.own = self._parts[world.rank]
        numbers = self.own.stop - self.own.start
        self.left_of_means = torch.zeros(numbers, device=flat.device)
        self._work = torch.empty(min(codec.piece, len(flat)), device=flat.device)
        # Codes of this rank's changes; of all means; and of others' changes of its own part, one rank after the other.
        self._each = codec.bytes_of(numbers)
        sizes = codec.bytes_of(len(flat)), codec.bytes_of(len(flat)), self._each * world.size
        self._codes = [torch.empty(size, dtype=torch.uint8, device=flat.device) for size in sizes]
        self._hosts = [torch.empty_like(c, device="cpu", pin_memory=c.is_cuda) if staged else c for c in self._codes]
        everyone = tuple(range(world.size))
        of_all = Partition(((0,),) * world.size, 1)
        self._plan = Exchange(of_all, of_all)
        self._mail = Mail(world.comm.Dup(), {everyone: world.comm.Dup()})
        self._travel: Travel | None = None
        others = codec.bytes_of(len(flat)) - self._each
        self.bytes_sent = others + self._each * (world.size - 1)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next average depends on beside the buffer, by name."""
        return {"reference": self.reference, "left": self.left, "left_of_means": self.left_of_means}

    def begin(self, flat: Tensor) -> None:
        """Encode what has changed, and send it to the owners.

        Args:
            flat: the buffer, or a copy; it stays as it is, and is not needed afterwards.
        """
        for chunk in chunks(slice(0, len(flat)), self._codec.piece):
            change = torch.sub(flat[chunk], self.reference[chunk], out=self._work[: chunk.stop - chunk.start])
            self._encode(self.left[chunk].add_(change), self._codes[0][self._codes_at(chunk)])
        self._to_host(0, slice(0, len(self._codes[0])))
        self._travel = Travel(self, self._world.rank, self._plan, self._mail, self._window)

    def advance(self) -> bool:
        """Send and take in what has become ready, without waiting; return whether all means are here."""
        travel = self._travel
        if travel is None:
            return True
        before = travel.ended
        done = travel.advance()
        if travel.ended != before:
            self._world.activity.progress()
        return done

    def wait(self, progress: Callable[[], None]) -> None:
        """Wait until all means are here; `progress` is called as messages come and go."""
        if self._travel is not None:
            self._travel.finish(progress)

    def end(self, flat: Tensor, *, minus: bool = False) -> None:
        """Fill the buffer with the average, once all means are here.

        Args:
            flat: the buffer, or a copy.
            minus: less what was in the buffer.
        """
        self._travel = None
        self._from_host(1, slice(0, len(self._codes[1])))
        for chunk in chunks(slice(0, len(flat)), self._codec.piece):
            self._codec.decode(self._codes[1][self._codes_at(chunk)], self.reference[chunk], add=True)
            if minus:
                torch.sub(self.reference[chunk], flat[chunk], out=flat[chunk])
            else:
                flat[chunk] = self.reference[chunk]

    def add_what_is_left(self, flat: Tensor) -> None:
        """Add to the buffer what was still to be sent, before all ranks average it as it is."""
        flat.add_(self.left)
        flat[self.own].add_(self.left_of_means, alpha=self._world.size)

    def restart(self) -> None:
        """Take the buffer's present content, equal on all ranks, for the reference; nothing is left to be sent."""
        self.reference.copy_(self._flat)
        self.left.zero_()
        self.left_of_means.zero_()

    def codes_of(self, message: Message) -> Tensor:
        """Return the codes of a message where MPI sends or fills them."""
        return self._hosts[0 if isinstance(message, Share) else 1][self._codes_at(self._parts[message.part])]

    def copy_of(self, rank: int) -> Tensor:
        """Return where the codes come of another rank's changes of this rank's part."""
        return self._hosts[2][rank * self._each : (rank + 1) * self._each]

    def average(self) -> None:
        """Average all changes of this rank's part, and encode their mean."""
        codec, size, me = self._codec, self._world.size, self._world.rank
        own_codes = self._codes_at(self.own)
        self._from_host(2, slice(0, len(self._codes[2])))
        for chunk in chunks(self.own, codec.piece):
            count, offset = chunk.stop - chunk.start, chunk.start - self.own.start
            mean = self._work[:count]
            for rank in range(size):
                first = own_codes.start if rank == me else rank * self._each
                at = first + codec.bytes_of(offset)
                codec.decode(self._codes[0 if rank == me else 2][at : at + codec.bytes_of(count)], mean, add=rank > 0)
            left = self.left_of_means[offset : offset + count]
            self._encode(left.add_(mean, alpha=1 / size), self._codes[1][self._codes_at(chunk)])
        self._to_host(1, own_codes)

    def _encode(self, numbers: Tensor, codes: Tensor) -> None:
        """Encode a chunk, and leave in it what the codes do not say."""
        self._codec.encode(numbers, codes)
        decoded = self._work[: len(numbers)]
        self._codec.decode(codes, decoded)
        numbers.sub_(decoded)

    def _codes_at(self, numbers: slice) -> slice:
        first = self._codec.bytes_of(numbers.start)
        return slice(first, first + self._codec.bytes_of(numbers.stop - numbers.start))

    def _to_host(self, which: int, codes: slice) -> None:
        if self._hosts[which] is not self._codes[which]:
            self._hosts[which][codes].copy_(self._codes[which][codes])

    def _from_host(self, which: int, codes: slice) -> None:
        if self._hosts[which] is not self._codes[which]:
            self._codes[which][codes].copy_(self._hosts[which][codes])


class Travel(PendingExchange):
    """Codes of changes and of means under way; see `PendingExchange`."""

    def __init__(self, changes: ChangesAverage, rank: int, plan: Exchange, mail: Mail, window: Window | None) -> None:
        self._changes = changes
        copies = {(0, other): changes.copy_of(other) for other in plan.holders[0] if other != rank}
        super().__init__(rank, plan, {}, copies, mail, window)

    def _part(self, message: Message) -> Numbers:
        codes: Numbers = self._changes.codes_of(message).numpy()
        return codes

    def _lands_on_copy(self, fetch: object) -> bool:
        """Return that codes of means land where no others are."""
        return False

    def _average(self, share: Share) -> None:
        self._changes.average()


class EncodedShift:
    """Replaces a copy of a buffer by the average of changes minus that copy, as `Shift` does without a codec.

    Encoding is over when `begin` returns. What is computed afterwards, `advance` computes in the thread that calls it.

    Args:
        changes: averages the buffer.
        flat: the copy.

    Attributes:
        bytes_sent: payload of one average.
    """

    def __init__(self, changes: ChangesAverage, flat: Tensor) -> None:
        self.bytes_sent = changes.bytes_sent
        self._changes, self._flat = changes, flat
        self._done = True

    def begin(self) -> None:
        """Begin with the copy's present content."""
        self._changes.begin(self._flat)
        self._done = False

    def advance(self) -> bool:
        """Send and take in what has become ready, without waiting; return whether all has been taken in."""
        if not self._done and self._changes.advance():
            self._changes.end(self._flat, minus=True)
            self._done = True
        return self._done

    def finish(self) -> None:
        """Do nothing: a GPU's work was given to the stream that all else is."""


def chunks(numbers: slice, size: int) -> Iterator[slice]:
    """Cut a stretch of a buffer into chunks of a size, the last of which may be shorter."""
    for first in range(numbers.start, numbers.stop, size):
        yield slice(first, min(first + size, numbers.stop))
