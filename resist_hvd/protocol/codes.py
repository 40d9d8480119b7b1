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


def encoded_bytes(codec: str, numbers: int) -> int:
    """Return the bytes of so many numbers: codes and scales."""
    record = RECORDS[codec]
    return -(-numbers // record.numbers) * record.bytes
