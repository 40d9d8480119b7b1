"""A codec that sends only the largest numbers of each group, and says which they are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resist_hvd.comm.codec import CODECS, PIECE_NUMBERS, Codec
from resist_hvd.protocol.codes import GROUP, record_of
from resist_hvd.settings.exchange import CodecName


class Largest(Codec):
    """Of each group the numbers whose magnitudes are largest, as many as share a scale; all others are decoded as zero.

    A record has a bit for each number of the group, which says whether it is sent, and then what another codec makes
    of those that are, in order. Which numbers are large differs from worker to worker and from round to round, so it
    has to be said; in return they carry most of a change (Aji and Heafield, Sparse Communication for Distributed
    Gradient Descent, 2017).

    On a CPU NumPy chooses, packs bits and finds places: it takes a fifth of PyTorch's time.

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
        self._sent = torch.empty(groups * GROUP, device=device)
        self._is_sent = torch.empty(self.piece, dtype=torch.uint8, device=device)
        self._codes = torch.empty(groups * (self.record - self._bits), dtype=torch.uint8, device=device)
        self._short = torch.zeros(self.group, device=device)
        self._values_of_bits = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=device)

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
        is_sent, places = self._choose(numbers)
        sent = torch.index_select(flat, 0, places, out=self._sent[: count * GROUP])
        codes = self._codes[: count * (self.record - self._bits)]
        self._numbers.encode(sent, codes, subtract=subtract)
        if subtract:
            flat.index_copy_(0, places, sent)
        records[:, : self._bits].copy_(self._packed(is_sent))
        records[:, self._bits :].copy_(codes.view(count, -1))

    def _choose(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return which numbers are sent, of each group as many, and their places; those that are not finite are."""
        magnitudes = torch.abs(numbers, out=self._work[: numbers.numel()].view_as(numbers))
        is_sent = self._is_sent[: numbers.numel()].view_as(numbers)
        if not numbers.is_cuda:
            magnitudes.nan_to_num_(nan=torch.inf, posinf=torch.inf).numpy().partition(self.group - GROUP, axis=1)
            least = magnitudes[:, -GROUP, None].clone()
            torch.abs(numbers, out=magnitudes).nan_to_num_(nan=torch.inf, posinf=torch.inf)
            torch.ge(magnitudes, least, out=is_sent.view(torch.bool))
            places = self._places(is_sent)
            if len(places) == len(numbers) * GROUP:
                return is_sent, places
            # Of several that are equal only some are sent.
        largest = torch.topk(magnitudes, GROUP, sorted=False).indices
        is_sent.zero_().scatter_(1, largest, 1)
        return is_sent, self._places(is_sent)

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
        sent, places = self._sent[: count * GROUP], self._places(self._unpacked(records[:, : self._bits]))
        self._numbers.decode(of_sent, sent)
        if add:
            flat.index_add_(0, places, sent)
        else:
            flat.zero_().index_copy_(0, places, sent)

    def _packed(self, is_sent: Tensor) -> Tensor:
        """Return a bit for each number of each group, [groups, bytes]."""
        if is_sent.is_cuda:
            return (is_sent.view(len(is_sent), -1, 8) * self._values_of_bits).sum(2, dtype=torch.uint8)
        return torch.from_numpy(np.packbits(is_sent.numpy(), axis=1))

    def _unpacked(self, packed: Tensor) -> Tensor:
        """Return what was packed, 1 or 0 for each number of each group, uint8."""
        if packed.is_cuda:
            return (packed[:, :, None] & self._values_of_bits).ne(0).view(torch.uint8).view(len(packed), -1)
        return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1))

    @staticmethod
    def _places(is_sent: Tensor) -> Tensor:
        """Return the places of ones, as if all groups were one."""
        if is_sent.is_cuda:
            return is_sent.view(-1).nonzero().view(-1)
        return torch.from_numpy(np.flatnonzero(is_sent.view(torch.bool).numpy()))


def codec_of(name: CodecName, device: torch.device, keep: float = 1.0) -> Codec:
    """Return a codec of which each record says all numbers of its group, or the largest of them.

    Args:
        name: of the codec of numbers that are sent.
        device: of the buffers.
        keep: the fraction that is sent.
    """
    return CODECS[name](device) if record_of(name, keep) == record_of(name) else Largest(name, keep, device)
