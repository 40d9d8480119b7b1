"""A codec that sends only the largest numbers of each group, and says which they are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resist_hvd.comm.codec import CODECS, PIECE_NUMBERS, Codec
from resist_hvd.protocol.codes import GROUP, record_of
from resist_hvd.settings.exchange import CodecName

MAGNITUDE = 0x7FFFFFFF
"""A mask of all bits of a float32 but its sign. As whole numbers they are in the order of magnitudes, NaN above all."""

FIRST_BITS = 0x8040201008040201 - 2**64
"""Eight bytes of 1 or 0 times this have those ones in their last byte, the first byte's as the highest bit; int64."""


class Largest(Codec):
    """Of each group the numbers whose magnitudes are largest, as many as share a scale; all others are decoded as zero.

    A record has a bit for each number of the group, which says whether it is sent, and then what another codec makes
    of those that are, in order. Which numbers are large differs from worker to worker and from round to round, so it
    has to be said; in return they carry most of a change (Aji and Heafield, Sparse Communication for Distributed
    Gradient Descent, 2017).

    Where numbers lie that are sent, NumPy lists anew for each piece, on a CPU: 62 KB, which the allocator has at hand,
    in a fifth of the time that PyTorch takes to fill a list of its own. All else has buffers that are made once.

    Args:
        name: of the codec of numbers that are sent.
        keep: the fraction that is sent, below 1.
        device: of the buffers.
    """

    def __init__(self, name: CodecName, keep: float, device: torch.device) -> None:
        self.name = name
        self._numbers = CODECS[name](device)
        self.group, self.record = record_of(name, keep)
        most = PIECE_NUMBERS["cuda" if device.type == "cuda" else "cpu"]
        self.piece = most // self.group * self.group
        groups = self.piece // self.group
        self._bits = self.group // 8
        self._work = torch.empty(self.piece, device=device)
        self._least = torch.empty(groups, 1, dtype=torch.int32, device=device)
        self._largest = torch.empty(groups, GROUP, dtype=torch.int64, device=device)
        self._sent = torch.empty(groups * GROUP, device=device)
        self._is_sent = torch.empty(self.piece, dtype=torch.bool, device=device)
        self._eights = torch.empty(groups, self._bits, dtype=torch.int64, device=device)
        self._codes = torch.empty(groups * (self.record - self._bits), dtype=torch.uint8, device=device)
        self._short = torch.zeros(self.group, device=device)
        bits = torch.arange(256, device=device)[:, None] >> torch.arange(7, -1, -1, device=device) & 1
        self._bits_of_bytes = bits.to(torch.uint8).view(torch.int64).view(-1)

    def _encode_piece(self, numbers: Tensor, out: Tensor, subtract: bool) -> None:
        whole = len(numbers) // self.group * self.group
        if whole:
            self._encode_groups(numbers[:whole].view(-1, self.group), out, subtract)
        if rest := len(numbers) - whole:
            self._short[:rest].copy_(numbers[whole:])
            self._short[rest:].zero_()
            self._encode_groups(self._short.view(1, -1), out[-self.record :], subtract)
            if subtract:
                numbers[whole:].copy_(self._short[:rest])

    def _encode_groups(self, numbers: Tensor, out: Tensor, subtract: bool) -> None:
        count, flat = len(numbers), numbers.view(-1)
        records = out[: count * self.record].view(count, self.record)
        is_sent = self._choose(numbers)
        places = self._places(is_sent)
        sent = torch.index_select(flat, 0, places, out=self._sent[: count * GROUP])
        codes = self._codes[: count * (self.record - self._bits)]
        self._numbers.encode(sent, codes, subtract=subtract)
        if subtract:
            flat.index_copy_(0, places, sent)
        self._pack(is_sent, records[:, : self._bits])
        records[:, self._bits :].copy_(codes.view(count, -1))

    def _choose(self, numbers: Tensor) -> Tensor:
        """Return which numbers are sent, of each group as many; those that are not finite are."""
        bits = numbers.view(torch.int32)
        magnitudes = self._work[: numbers.numel()].view_as(numbers).view(torch.int32)
        is_sent = self._is_sent[: numbers.numel()].view_as(numbers)
        torch.bitwise_and(bits, MAGNITUDE, out=magnitudes)
        if not numbers.is_cuda:
            # NumPy takes a small part of the time of PyTorch's topk, but only finds the least that is sent.
            magnitudes.numpy().partition(self.group - GROUP, axis=1)
            least = self._least[: len(numbers)].copy_(magnitudes[:, -GROUP, None])
            torch.bitwise_and(bits, MAGNITUDE, out=magnitudes)
            torch.ge(magnitudes, least, out=is_sent)
            if np.count_nonzero(is_sent.numpy()) == len(numbers) * GROUP:
                return is_sent
            # Of several that are equal only some are sent.
        largest = self._largest[: len(numbers)]
        values = self._sent[: largest.numel()].view_as(largest).view(torch.int32)
        torch.topk(magnitudes, GROUP, sorted=False, out=(values, largest))
        return is_sent.zero_().scatter_(1, largest, True)

    def _decode_piece(self, codes: Tensor, out: Tensor, add: bool) -> None:
        whole = len(out) // self.group * self.group
        if whole:
            self._decode_groups(codes, out[:whole].view(-1, self.group), add)
        if rest := len(out) - whole:
            self._decode_groups(codes[-self.record :], self._short.view(1, -1), False)
            into = out[whole:]
            into.add_(self._short[:rest]) if add else into.copy_(self._short[:rest])

    def _decode_groups(self, codes: Tensor, out: Tensor, add: bool) -> None:
        count, flat = len(out), out.view(-1)
        records = codes[: count * self.record].view(count, self.record)
        of_sent = self._codes[: count * (self.record - self._bits)]
        of_sent.view(count, -1).copy_(records[:, self._bits :])
        sent, places = self._sent[: count * GROUP], self._places(self._unpack(records[:, : self._bits]))
        self._numbers.decode(of_sent, sent)
        if add:
            flat.index_add_(0, places, sent)
        else:
            flat.zero_().index_copy_(0, places, sent)

    def _pack(self, is_sent: Tensor, out: Tensor) -> None:
        """Write a bit for each number of each group, [groups, bytes]."""
        eights = self._eights[: len(out)]
        torch.mul(is_sent.view(torch.int64), FIRST_BITS, out=eights)
        out.copy_(eights.view(torch.uint8)[:, 7::8])

    def _unpack(self, packed: Tensor) -> Tensor:
        """Return what was packed, bool for each number of each group."""
        eights = self._eights[: len(packed)].copy_(packed)
        is_sent = self._is_sent[: eights.numel() * 8]
        torch.index_select(self._bits_of_bytes, 0, eights.view(-1), out=is_sent.view(torch.int64))
        return is_sent.view(len(packed), -1)

    @staticmethod
    def _places(is_sent: Tensor) -> Tensor:
        """Return the places of what is sent, as if all groups were one."""
        if is_sent.is_cuda:
            return is_sent.view(-1).nonzero().view(-1)
        return torch.from_numpy(np.flatnonzero(is_sent.numpy()))


def codec_of(name: CodecName, device: torch.device, keep: float = 1.0) -> Codec:
    """Return a codec of which each record says all numbers of its group, or the largest of them.

    Args:
        name: of the codec of numbers that are sent.
        device: of the buffers.
        keep: the fraction that is sent.
    """
    return CODECS[name](device) if record_of(name, keep) == record_of(name) else Largest(name, keep, device)
