"""The codec of the largest numbers of each group: which are sent, what is left, and the bytes that they take."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from resist_hvd.comm.codec import CODECS
from resist_hvd.comm.sparse import Largest, codec_of
from resist_hvd.protocol.codes import GROUP, encoded_bytes, record_of
from resist_hvd.settings.exchange import CodecName

CPU = torch.device("cpu")
KEEP = 0.25
SPARSE: dict[CodecName, Largest] = {name: Largest(name, KEEP, CPU) for name in CODECS}
GROUPED = GROUP * 4

names = st.sampled_from(list(SPARSE))
lengths = st.one_of(st.integers(0, 3 * GROUPED + 1), st.just(40 * GROUPED + 300))


@st.composite
def buffers(draw: st.DrawFn) -> Tensor:
    """Buffers of any length, of numbers of one size or of many, with zeros and with equal ones among them."""
    length = draw(lengths)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    flat = torch.randn(length, generator=generator) * 2.0 ** draw(st.integers(-60, 10))
    if draw(st.booleans()):
        flat *= 2.0 ** torch.randint(-10, 5, (length,), generator=generator)
    if draw(st.booleans()):
        flat = flat.sign()
    flat[torch.rand(length, generator=generator) < draw(st.sampled_from([0, 0.9, 1]))] = 0
    return flat


def decoded(codec: Largest, flat: Tensor) -> Tensor:
    out = torch.full((codec.bytes_of(len(flat)),), 0xA5, dtype=torch.uint8)
    codec.encode(flat, out)
    found = torch.full((len(flat),), math.nan)
    codec.decode(out, found)
    return found


@given(buffers())
def test_of_each_group_a_quarter_is_sent_the_largest(flat: Tensor) -> None:
    found = decoded(SPARSE["fp32"], flat)
    for first in range(0, len(flat), GROUPED):
        group, sent = flat[first : first + GROUPED], found[first : first + GROUPED]
        assert torch.equal(sent[sent != 0], group[sent != 0])
        left = group[sent == 0].abs()
        assert int((sent != 0).sum()) == min(GROUP, int((group != 0).sum()))
        assert not left.any() or left.max() <= sent[sent != 0].abs().min()


@given(names, buffers())
def test_what_is_sent_is_what_the_codec_makes_of_it(name: CodecName, flat: Tensor) -> None:
    found, sent = decoded(SPARSE[name], flat), decoded(SPARSE["fp32"], flat)
    dense, codes = CODECS[name](CPU), torch.empty(encoded_bytes(name, GROUP), dtype=torch.uint8)
    for first in range(0, len(flat), GROUPED):
        group, theirs = sent[first : first + GROUPED], found[first : first + GROUPED]
        numbers = torch.zeros(GROUP)
        chosen = group.nonzero().view(-1)
        numbers[: len(chosen)] = group[chosen]
        dense.encode(numbers, codes)
        dense.decode(codes, numbers)
        assert torch.equal(theirs[chosen], numbers[: len(chosen)])
        assert not theirs[group == 0].any()


@given(names, buffers())
def test_a_number_is_what_is_decoded_and_what_was_left(name: CodecName, flat: Tensor) -> None:
    codec, less = SPARSE[name], flat.clone()
    found = decoded(codec, flat)
    codec.encode(less, torch.empty(codec.bytes_of(len(flat)), dtype=torch.uint8), subtract=True)
    assert torch.equal(less, flat - found)
    assert torch.equal(less.double() + found.double(), flat.double())


@given(names, buffers(), st.integers(0, 2**32))
def test_decoding_adds_to_what_is_there(name: CodecName, flat: Tensor, seed: int) -> None:
    codec = SPARSE[name]
    codes = torch.empty(codec.bytes_of(len(flat)), dtype=torch.uint8)
    codec.encode(flat, codes)
    there = torch.randn(len(flat), generator=torch.Generator().manual_seed(seed))
    expected = there + decoded(codec, flat)
    codec.decode(codes, there, add=True)
    assert torch.equal(there, expected)


@given(names, buffers(), st.integers(0, 5))
def test_codes_of_a_part_are_a_part_of_the_codes(name: CodecName, flat: Tensor, groups: int) -> None:
    codec = SPARSE[name]
    first = min(groups * codec.group, len(flat))
    whole, *parts = (torch.empty(codec.bytes_of(n), dtype=torch.uint8) for n in (len(flat), first, len(flat) - first))
    for numbers, codes in zip((flat, flat[:first], flat[first:]), (whole, *parts), strict=True):
        codec.encode(numbers, codes)
    assert torch.equal(torch.cat(parts), whole)


@given(st.floats(0.01, 1), st.integers(0, 10**6), names)
def test_bytes_are_those_of_what_is_sent_and_a_bit_for_each_number(keep: float, numbers: int, name: CodecName) -> None:
    codec = codec_of(name, CPU, keep)
    assert codec.bytes_of(numbers) == encoded_bytes(name, numbers, keep)
    if isinstance(codec, Largest):
        assert keep <= GROUP / codec.group <= keep * 1.13
        assert codec.record == codec.group // 8 + encoded_bytes(name, GROUP)
        assert codec.piece % codec.group == 0 < codec.piece
    else:
        assert keep > 0.88
        assert record_of(name, keep) == record_of(name)


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1023, 1024, 1500])
def test_what_is_not_finite_is_found_after_decoding(name: CodecName, strange: float, place: int) -> None:
    flat = torch.randn(1600, generator=torch.Generator().manual_seed(1))
    flat[place] = strange
    found = decoded(SPARSE[name], flat)
    assert not found[place].isfinite()
    others = slice(1024, 1600) if place < 1024 else slice(0, 1024)
    assert found[others].isfinite().all()


def test_the_first_number_of_eight_is_the_highest_bit_of_a_byte() -> None:
    codec = SPARSE["int8"]
    is_sent = torch.rand(3, GROUPED, generator=torch.Generator().manual_seed(1)) < 0.5
    packed = torch.empty(3, GROUPED // 8, dtype=torch.uint8)
    codec._pack(is_sent, packed)
    assert np.array_equal(packed, np.packbits(is_sent, axis=1))
    assert torch.equal(codec._unpack(packed), is_sent)


def test_of_equal_magnitudes_as_many_are_sent() -> None:
    flat = torch.randn(5 * GROUPED, generator=torch.Generator().manual_seed(1)).sign()
    assert decoded(SPARSE["fp32"], flat).view(-1, GROUPED).count_nonzero(1).tolist() == [GROUP] * 5
