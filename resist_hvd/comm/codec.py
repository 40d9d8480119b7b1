"""Codecs: flat buffers of parameters as they go over the wire.

fp32 and fp16 are PyTorch's types. int8, int6, int5 and int4 cut a buffer into groups of numbers, and send each group as
one scale, s = max |x| / (2^(b-1) - 1), and for every number the whole number nearest to x / s, in b bits: the
group-wise absmax codes of QSGD's descendants (Dettmers et al., 8-bit Optimizers via Block-wise Quantization, 2022).

A scale keeps 17 of float32's 24 significant bits. So the product of a scale and a code is exact: what was decoded is
encoded again without any change, however often a block moves, even where rounding has touched its last bit since. And a
number less its decoded value is exact as well, so that error feedback loses nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from resist_hvd.protocol.codes import GROUP, RECORDS, SCALE_BYTES
from resist_hvd.settings.exchange import CodecName

PIECE_NUMBERS = {"cpu": 127 * GROUP, "cuda": 2**23}
"""Numbers that are encoded at a time. They stay in a CPU's cache from one operation to the next, and are fewer
than the 32,768 from which on PyTorch calls other threads: each thread that encodes would get its own. On a GPU they
are many, as each operation has to be launched."""

SMALLEST_SCALE = 2.0**-126
"""A group whose scale would be less has this one, float32's least number of full precision."""
SCALE_BITS = -(2**7)
"""A mask of those bits of a scale that are kept."""
ROUNDED_UP = 1 + 2.0**-18
"""What a scale is multiplied by before its other bits are cut off: one that rounding made less comes back as it was."""


class Codec(ABC):
    """Encoding of a flat buffer of float32 for the wire.

    A buffer is cut into groups of numbers, the last of which may be short, and each group becomes a record of as many
    bytes. So the codes of a part that ends where a group does are a part of the codes of the whole. Nothing is
    allocated once it is made; one thread at a time may use it.

    Args:
        device: of the buffers.

    Attributes:
        name: by which users choose it.
        group: numbers of a record.
        record: its bytes.
        piece: numbers, whole groups, that pass through the cache together.
    """

    name: CodecName

    def __init__(self, device: torch.device) -> None:
        self.group, self.record = RECORDS[self.name]
        self.piece = PIECE_NUMBERS["cuda" if device.type == "cuda" else "cpu"]
        self._work = torch.empty(self.piece, device=device)

    def bytes_of(self, numbers: int) -> int:
        """Return the bytes of so many numbers: codes and scales."""
        return -(-numbers // self.group) * self.record

    def encode(self, flat: Tensor, out: Tensor, *, subtract: bool = False) -> None:
        """Encode a buffer.

        Args:
            flat: [n], contiguous, float32. A group with a number that is not finite is decoded without any that is.
            out: [bytes_of(n)], contiguous, uint8; where its storage is cut, each cut is at a multiple of 4 bytes.
            subtract: leave in the buffer what its codes do not say: the numbers less what is decoded.

        Raises:
            ValueError: a buffer is of another type, or `out` of another size.
        """
        self._check(flat, out)
        for first in range(0, len(flat), self.piece):
            numbers = flat[first : first + self.piece]
            at = self.bytes_of(first)
            self._encode_piece(numbers, out[at : at + self.bytes_of(len(numbers))], subtract)

    def decode(self, codes: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Decode into a buffer.

        Args:
            codes: [bytes_of(n)], as `encode` made them.
            out: [n], contiguous, float32.
            add: add to what is in it.

        Raises:
            ValueError: a buffer is of another type, or `codes` of another size.
        """
        self._check(out, codes)
        for first in range(0, len(out), self.piece):
            numbers = out[first : first + self.piece]
            at = self.bytes_of(first)
            self._decode_piece(codes[at : at + self.bytes_of(len(numbers))], numbers, add)

    def _check(self, flat: Tensor, codes: Tensor) -> None:
        if flat.dtype != torch.float32 or codes.dtype != torch.uint8 or len(codes) != self.bytes_of(len(flat)):
            raise ValueError(
                f"{len(flat)} numbers of {flat.dtype} and {len(codes)} codes of {codes.dtype}; "
                f"a codec takes float32 and, for so many, {self.bytes_of(len(flat))} codes of uint8"
            )

    @abstractmethod
    def _encode_piece(self, numbers: Tensor, out: Tensor, subtract: bool) -> None:
        """Encode at most `piece` numbers."""

    @abstractmethod
    def _decode_piece(self, codes: Tensor, out: Tensor, add: bool) -> None:
        """Decode at most `piece` numbers."""


class Float(Codec):
    """Numbers of a type of PyTorch's. What float16 cannot hold is infinite, so that it is found."""

    dtype: torch.dtype

    def _encode_piece(self, numbers: Tensor, out: Tensor, subtract: bool) -> None:
        codes = out.view(self.dtype).copy_(numbers)
        if subtract:
            numbers.sub_(self._work[: len(numbers)].copy_(codes))

    def _decode_piece(self, codes: Tensor, out: Tensor, add: bool) -> None:
        if add:
            out.add_(self._work[: len(out)].copy_(codes.view(self.dtype)))
        else:
            out.copy_(codes.view(self.dtype))


class Float32(Float):
    """The numbers themselves."""

    name, dtype = "fp32", torch.float32


class Float16(Float):
    """Numbers of half the bytes."""

    name, dtype = "fp16", torch.float16


class Integers(Codec):
    """Whole multiples of a scale, one a group of numbers; a record is the scale, then the packed codes.

    While they are packed, codes lie plane by plane: of each group the first of as many equal stretches, then of each
    the second. So operations go through all groups at once, not through a stretch at a time.

    Attributes:
        bits: of a code.
        planes: stretches that a group is cut into.
    """

    bits: int

    planes: int

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._limit = 2 ** (self.bits - 1) - 1
        self._scales = torch.empty(self.piece // self.group, 1, device=device)
        self._bytes = torch.empty(self.piece, dtype=torch.uint8, device=device)
        self._short = torch.zeros(self.group, device=device)

    def _encode_piece(self, numbers: Tensor, out: Tensor, subtract: bool) -> None:
        whole = len(numbers) // self.group
        if whole:
            groups = numbers[: whole * self.group].view(whole, self.group)
            self._encode_groups(groups, out[: whole * self.record], subtract)
        if rest := len(numbers) - whole * self.group:
            self._short[:rest].copy_(numbers[-rest:])
            self._short[rest:].zero_()
            self._encode_groups(self._short.view(1, self.group), out[whole * self.record :], subtract)
            if subtract:
                numbers[-rest:].copy_(self._short[:rest])

    def _encode_groups(self, numbers: Tensor, out: Tensor, subtract: bool) -> None:
        count = len(numbers)
        work, scales = self._work[: numbers.numel()], self._scales[:count]
        torch.abs(numbers, out=work.view_as(numbers))
        torch.amax(work.view_as(numbers), 1, keepdim=True, out=scales)  # NaN where there is one
        scales.mul_(ROUNDED_UP / self._limit).clamp_(min=SMALLEST_SCALE).view(torch.int32).bitwise_and_(SCALE_BITS)
        stretches, in_planes = work.view(self.planes, count, -1), numbers.view(count, self.planes, -1)
        torch.div(in_planes, scales[:, :, None], out=stretches.transpose(0, 1))
        stretches.round_()
        if subtract:
            in_planes.addcmul_(stretches.transpose(0, 1), scales[:, :, None], value=-1)
        kept, packed = self._fields(out)
        kept.copy_(scales)
        self._pack(stretches, packed)

    def _decode_piece(self, codes: Tensor, out: Tensor, add: bool) -> None:
        whole = len(out) // self.group
        if whole:
            into = out[: whole * self.group].view(whole, self.group)
            self._decode_groups(codes[: whole * self.record], into, add)
        if rest := len(out) - whole * self.group:
            self._decode_groups(codes[whole * self.record :], self._short.view(1, self.group), False)
            into = out[-rest:]
            into.add_(self._short[:rest]) if add else into.copy_(self._short[:rest])

    def _decode_groups(self, records: Tensor, out: Tensor, add: bool) -> None:
        scales, packed = self._fields(records)
        codes = self._unpack(packed).transpose(0, 1)
        if add:
            work = self._work[: out.numel()].view_as(out)
            work.view(codes.shape).copy_(codes)
            out.addcmul_(work, scales)
        else:
            out.view(codes.shape).copy_(codes)
            out.mul_(scales)

    def _fields(self, records: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scales [groups, 1] and the packed codes [groups, bytes] of records."""
        scales = records.view(torch.float32).view(-1, self.record // SCALE_BYTES)[:, :1]
        return scales, records.view(-1, self.record)[:, SCALE_BYTES:]

    @abstractmethod
    def _pack(self, codes: Tensor, out: Tensor) -> None:
        """Pack codes [planes, groups, stretch], whole numbers in float32 that may be changed, into bytes."""

    @abstractmethod
    def _unpack(self, packed: Tensor) -> Tensor:
        """Return the codes of packed bytes [planes, groups, stretch], int8."""


class Int8(Integers):
    """A code a byte."""

    name, bits, planes = "int8", 8, 1

    def _pack(self, codes: Tensor, out: Tensor) -> None:
        out.view(torch.int8).copy_(codes[0])

    def _unpack(self, packed: Tensor) -> Tensor:
        return packed.view(torch.int8)[None]


class Int6(Integers):
    """Four codes in three bytes: those of a group's first three quarters, and above each, two bits of the last's."""

    name, bits, planes = "int6", 6, 4

    def _pack(self, codes: Tensor, out: Tensor) -> None:
        quarters = self._bytes[: codes.numel()].view_as(codes)
        quarters.view(torch.int8).copy_(codes)  # to uint8 PyTorch converts five times slower
        quarters.add_(32)
        last, spare = quarters[3], codes[3].view(torch.uint8).view(-1)[: quarters[3].numel()].view_as(quarters[3])
        for number in range(3):
            torch.bitwise_left_shift(last, 6 - 2 * number, out=spare)
            quarters[number].bitwise_or_(spare.bitwise_and_(0xC0))
        out.view(len(out), 3, -1).copy_(quarters[:3].transpose(0, 1))

    def _unpack(self, packed: Tensor) -> Tensor:
        count = len(packed)
        quarters = self._bytes[: count * self.group].view(4, count, -1)
        last = quarters[3]
        quarters[:3].copy_(packed.view(count, 3, -1).transpose(0, 1))
        torch.bitwise_right_shift(quarters[0], 6, out=last)
        for number in (1, 2):
            spare = self._work[: last.numel() // 4].view(torch.uint8).view_as(last)
            torch.bitwise_right_shift(quarters[number], 6 - 2 * number, out=spare)
            last.bitwise_or_(spare.bitwise_and_(0x03 << (2 * number)))
        quarters[:3].bitwise_and_(0x3F)
        return quarters.sub_(32).view(torch.int8)


class Int5(Integers):
    """Eight codes in five bytes: those of a group's first five eighths, and above them the bits of the others."""

    name, bits, planes = "int5", 5, 8

    def _pack(self, codes: Tensor, out: Tensor) -> None:
        eighths = self._bytes[: codes.numel()].view_as(codes)
        eighths.view(torch.int8).copy_(codes)
        eighths.add_(16)
        low, high = eighths[:5], eighths[5:]
        spare = codes.view(torch.uint8).view(-1)[: high.numel()].view_as(high)
        low[:3].bitwise_or_(torch.bitwise_left_shift(high, 5, out=spare))
        low[3:].bitwise_or_(torch.bitwise_and(high[:2], 0x18, out=spare[:2]).bitwise_left_shift_(2))
        for number, bit in enumerate((0x08, 0x10)):
            top = torch.bitwise_and(high[2], bit, out=spare[0]).bitwise_left_shift_(4 - number)
            low[3 + number].bitwise_or_(top)
        out.view(len(out), 5, -1).copy_(low.transpose(0, 1))

    def _unpack(self, packed: Tensor) -> Tensor:
        count = len(packed)
        eighths = self._bytes[: count * self.group].view(8, count, -1)
        low, high = eighths[:5], eighths[5:]
        low.copy_(packed.view(count, 5, -1).transpose(0, 1))
        spare = self._work[: low[3:].numel() // 4].view(torch.uint8).view_as(low[3:])
        torch.bitwise_right_shift(low[:3], 5, out=high)
        high[:2].bitwise_or_(torch.bitwise_and(low[3:], 0x60, out=spare).bitwise_right_shift_(2))
        for number in range(2):
            top = torch.bitwise_and(low[3 + number], 0x80, out=spare[0]).bitwise_right_shift_(4 - number)
            high[2].bitwise_or_(top)
        low.bitwise_and_(0x1F)
        return eighths.sub_(16).view(torch.int8)


class Int4(Integers):
    """Two codes in a byte: 8 more than one of a group's first half, and above it one of the second's, with its sign."""

    name, bits, planes = "int4", 4, 2

    def _pack(self, codes: Tensor, out: Tensor) -> None:
        first, second = codes
        out.view(torch.int8).copy_(first.add_(second, alpha=16).add_(8))

    def _unpack(self, packed: Tensor) -> Tensor:
        halves = self._bytes[: len(packed) * self.group].view(torch.int8).view(2, len(packed), -1)
        first, second = halves
        first.copy_(packed.view(torch.int8))
        torch.bitwise_right_shift(first, 4, out=second)  # with its sign
        first.bitwise_and_(0x0F).sub_(8)
        return halves


CODECS: dict[CodecName, type[Codec]] = {codec.name: codec for codec in (Float32, Float16, Int8, Int6, Int5, Int4)}
"""Codecs by name."""
