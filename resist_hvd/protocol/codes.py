"""The bytes that codecs make of numbers."""

from __future__ import annotations

from typing import NamedTuple

GROUP = 256
"""Numbers that share a scale."""

SCALE_BYTES = 4


class Record(NamedTuple):
    """So many numbers, and the bytes that they become together."""

    numbers: int
    bytes: int


RECORDS: dict[str, Record] = {
    "fp32": Record(1, 4),
    "fp16": Record(1, 2),
    **{f"int{bits}": Record(GROUP, SCALE_BYTES + GROUP * bits // 8) for bits in (8, 6, 5, 4)},
}
"""By codec. A group that is not full becomes a whole record."""


def record_of(codec: str, keep: float = 1.0) -> Record:
    """Return the record of a codec of which a fraction of the numbers is sent: those that share a scale, of a group.

    A bit for each number of the group says which they are. The fraction is a little larger where the group would not be
    a multiple of 32 numbers; where it would be no larger than what shares a scale, all are sent.

    Args:
        codec: of the numbers that are sent.
        keep: the fraction.
    """
    group = int(GROUP / keep) // 32 * 32
    return Record(group, group // 8 + encoded_bytes(codec, GROUP)) if group > GROUP else RECORDS[codec]


def encoded_bytes(codec: str, numbers: int, keep: float = 1.0) -> int:
    """Return the bytes of so many numbers: codes and scales, and where a fraction is sent, which they are."""
    record = record_of(codec, keep)
    return -(-numbers // record.numbers) * record.bytes
