"""Averages of a buffer that all ranks have, by what has changed since the last one, encoded in few bits.

All ranks have gone on from the same average, the reference. So each encodes what has become of it since, and sends
every part of these codes to the part's owner, which decodes and adds them up, divides, and encodes the mean again; its
codes go to all. Everyone, the owner too, adds the decoded mean to the reference: so all ranks keep the same bits.

What encoding leaves out is added to what is encoded next time, by each rank for its changes and by each owner for its
means (error feedback: Seide et al., 1-Bit Stochastic Gradient Descent, 2014; on both sides: Tang et al., DoubleSqueeze,
2019). So it comes late, but nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from resist_hvd.comm.codec import Codec
from resist_hvd.comm.world import World

PIECE_NUMBERS = 2**22
"""Numbers whose codes are one collective: the next are encoded while these are under way."""


@dataclass(frozen=True)
class Piece:
    """A stretch of the buffer, whose codes travel together.

    Attributes:
        numbers: where it lies.
        own: where the part lies that this rank owns.
        kept: where what is left of that part's means lies among what is left of all of them.
        splits: bytes of the codes of each rank's part, [S].
    """

    numbers: slice
    own: slice
    kept: slice
    splits: Tensor


class ChangesAverage:
    """The average of one buffer.

    Args:
        world: all workers; more than one.
        name: of the buffer, the same on all ranks.
        flat: the buffer, contiguous, float32; its present content, equal on all ranks, is the first reference.
        codec: encodes changes and means.
        staged: whether codes pass through host memory on their way.

    Attributes:
        reference: the average that all ranks have gone on from, [n].
        left: what this rank has still to send of its changes, [n].
        left_of_means: what it has still to send of the means of its own parts, about [n / S].
        bytes_sent: payload of one average.
    """

    def __init__(self, world: World, name: str, flat: Tensor, codec: Codec, *, staged: bool) -> None:
        self._world, self._name, self._codec = world, name, codec
        self._flat = flat.detach()
        self.reference = self._flat.clone()
        self.left = torch.zeros_like(self.reference)
        self._pieces = list(cut(len(flat), codec, world))
        self.left_of_means = torch.zeros(self._pieces[-1].kept.stop if self._pieces else 0, device=flat.device)
        self._codes = torch.empty(codec.bytes_of(len(flat)), dtype=torch.uint8, device=flat.device)
        self._work = torch.empty(min(codec.piece, len(flat)), device=flat.device)
        self._host = torch.empty_like(self._codes, device="cpu", pin_memory=flat.is_cuda) if staged else None
        self._shares: list[Any] = []
        self._means: list[Any] = []
        of_means = sum(codec.bytes_of(piece.own.stop - piece.own.start) for piece in self._pieces)
        of_shares = sum(int(piece.splits.sum() - piece.splits[world.rank]) for piece in self._pieces)
        self.bytes_sent = of_shares + of_means * (world.size - 1)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next average depends on beside the buffer, by name."""
        return {"reference": self.reference, "left": self.left, "left_of_means": self.left_of_means}

    def begin(self, flat: Tensor) -> None:
        """Encode what has changed, and send it to the owners, piece by piece.

        Args:
            flat: the buffer, or a copy; it stays as it is, and is not needed afterwards.
        """
        import horovod.torch as hvd

        for number, piece in enumerate(self._pieces):
            for chunk in chunks(piece.numbers, self._codec.piece):
                change = torch.sub(flat[chunk], self.reference[chunk], out=self._work[: chunk.stop - chunk.start])
                self._encode(self.left[chunk].add_(change), self._codes_of(chunk))
            outgoing = self._outgoing(self._codes_of(piece.numbers), piece.numbers)
            name = f"{self._name}.{number}.changes"
            self._shares.append(hvd.alltoall_async(outgoing, splits=piece.splits, name=name))

    def advance(self) -> bool:
        """Send the means of all pieces whose changes have come, without waiting; return whether all means are here."""
        import horovod.torch as hvd

        while len(self._means) < len(self._shares) and hvd.poll(self._shares[len(self._means)]):
            self._send_mean(hvd.synchronize)
        return len(self._means) == len(self._shares) and all(map(hvd.poll, self._means))

    def end(self, flat: Tensor, wait: Callable[[Any], Any], *, minus: bool = False) -> None:
        """Fill the buffer with the average.

        Args:
            flat: the buffer, or a copy.
            wait: waits for one of Horovod's handles, and returns what it has brought.
            minus: less what was in the buffer.
        """
        while len(self._means) < len(self._shares):
            self._send_mean(wait)
        for piece, handle in zip(self._pieces, self._means, strict=True):
            means = self._incoming(wait(handle))
            first = self._codec.bytes_of(piece.numbers.start)
            for chunk in chunks(piece.numbers, self._codec.piece):
                at = self._codes_at(chunk)
                self._codec.decode(means[at.start - first : at.stop - first], self.reference[chunk], add=True)
                if minus:
                    torch.sub(self.reference[chunk], flat[chunk], out=flat[chunk])
                else:
                    flat[chunk] = self.reference[chunk]
        self._shares.clear()
        self._means.clear()

    def add_what_is_left(self, flat: Tensor) -> None:
        """Add to the buffer what was still to be sent, before all ranks average it as it is."""
        flat.add_(self.left)
        for piece in self._pieces:
            flat[piece.own].add_(self.left_of_means[piece.kept], alpha=self._world.size)

    def restart(self) -> None:
        """Take the buffer's present content, equal on all ranks, for the reference; nothing is left to be sent."""
        self.reference.copy_(self._flat)
        self.left.zero_()
        self.left_of_means.zero_()

    def _send_mean(self, wait: Callable[[Any], Any]) -> None:
        """Average the parts of the next piece that this rank owns, and send the codes of their mean to all."""
        import horovod.torch as hvd

        number = len(self._means)
        piece, (arrived, _) = self._pieces[number], wait(self._shares[number])
        received = self._incoming(arrived)
        own, codec, size = piece.own, self._codec, self._world.size
        each = codec.bytes_of(own.stop - own.start)
        for chunk in chunks(own, codec.piece):
            count, offset = chunk.stop - chunk.start, chunk.start - own.start
            mean = self._work[:count]
            for rank in range(size):
                at = rank * each + codec.bytes_of(offset)
                codec.decode(received[at : at + codec.bytes_of(count)], mean, add=rank > 0)
            kept = self.left_of_means[piece.kept][offset : offset + count]
            self._encode(kept.add_(mean, alpha=1 / size), self._codes_of(chunk))
        outgoing = self._outgoing(self._codes_of(own), own)
        self._means.append(hvd.allgather_async(outgoing, name=f"{self._name}.{number}.means"))

    def _encode(self, numbers: Tensor, codes: Tensor) -> None:
        """Encode a chunk, and leave in it what the codes do not say."""
        self._codec.encode(numbers, codes)
        decoded = self._work[: len(numbers)]
        self._codec.decode(codes, decoded)
        numbers.sub_(decoded)

    def _codes_at(self, numbers: slice) -> slice:
        first = self._codec.bytes_of(numbers.start)
        return slice(first, first + self._codec.bytes_of(numbers.stop - numbers.start))

    def _codes_of(self, numbers: slice) -> Tensor:
        return self._codes[self._codes_at(numbers)]

    def _outgoing(self, codes: Tensor, numbers: slice) -> Tensor:
        return codes if self._host is None else self._host[self._codes_at(numbers)].copy_(codes)

    def _incoming(self, codes: Tensor) -> Tensor:
        return codes.to(self.reference.device)


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
        import horovod.torch as hvd

        if not self._done and self._changes.advance():
            self._changes.end(self._flat, hvd.synchronize, minus=True)
            self._done = True
        return self._done

    def finish(self) -> None:
        """Do nothing: a GPU's work was given to the stream that all else is."""


def chunks(numbers: slice, size: int) -> Iterator[slice]:
    """Cut a stretch of a buffer into chunks of a size, the last of which may be shorter."""
    for first in range(numbers.start, numbers.stop, size):
        yield slice(first, min(first + size, numbers.stop))


def cut(numbers: int, codec: Codec, world: World) -> Iterator[Piece]:
    """Cut a buffer into pieces, each with near-equal parts of whole groups, one a rank."""
    size = max(PIECE_NUMBERS // codec.piece, 1) * codec.piece
    kept = 0
    for piece in chunks(slice(0, numbers), size):
        groups = -(-(piece.stop - piece.start) // codec.group)
        edges = [
            min(piece.start + groups * rank // world.size * codec.group, piece.stop) for rank in range(world.size + 1)
        ]
        parts = [slice(first, end) for first, end in pairwise(edges)]
        own = parts[world.rank]
        before, kept = kept, kept + own.stop - own.start
        splits = torch.tensor([codec.bytes_of(part.stop - part.start) for part in parts], dtype=torch.int32)
        yield Piece(piece, own, slice(before, kept), splits)
