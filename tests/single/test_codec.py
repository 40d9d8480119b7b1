"""Codecs: how far off they are, what they leave as it is, and the bytes that they take."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from resist_hvd.comm.codec import CODECS, Codec, Integers
from resist_hvd.protocol.codes import GROUP
from resist_hvd.settings.exchange import CodecName

CPU = torch.device("cpu")
OURS: dict[CodecName, Codec] = {name: codec(CPU) for name, codec in CODECS.items()}
INTEGERS: dict[str, Integers] = {name: codec for name, codec in OURS.items() if isinstance(codec, Integers)}

names = st.sampled_from(list(OURS))
integers = st.sampled_from(list(INTEGERS))
lengths = st.one_of(st.integers(0, 3 * GROUP + 1), st.just(2**16), st.just(2**16 + 300))
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def buffers(draw: st.DrawFn) -> Tensor:
    """Buffers of any length, of numbers of one size or of many, some of them zero, with any numbers among them."""
    length = draw(lengths)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    flat = torch.randn(length, generator=generator) * 2.0 ** draw(st.integers(-149, 120))
    if draw(st.booleans()):
        flat *= 2.0 ** torch.randint(-20, 20, (length,), generator=generator)
    flat[torch.rand(length, generator=generator) < draw(st.sampled_from([0, 0.5, 1]))] = 0
    if length:
        for value in draw(st.lists(finite, max_size=4)):
            flat[draw(st.integers(0, length - 1))] = value
    return flat.nan_to_num()  # some may have grown beyond float32


def encoded(codec: Codec, flat: Tensor) -> Tensor:
    out = torch.full((codec.bytes_of(len(flat)),), 0xA5, dtype=torch.uint8)
    codec.encode(flat, out)
    return out


def decoded(codec: Codec, codes: Tensor, length: int) -> Tensor:
    out = torch.full((length,), math.nan)
    codec.decode(codes, out)
    return out


def scales_in(codec: Integers, codes: Tensor, length: int) -> Tensor:
    """Return each number's scale, as codes have it, in double precision."""
    scales = codes.view(-1, codec.record)[:, :4].contiguous().view(torch.float32)
    return scales.double().repeat_interleave(GROUP)[:length]


@given(integers, buffers())
def test_a_scale_is_the_most_of_a_group_over_the_most_of_a_code(name: str, flat: Tensor) -> None:
    codec = INTEGERS[name]
    scales = scales_in(codec, encoded(codec, flat), len(flat))
    for first in range(0, len(flat), GROUP):
        exact = max(float(flat[first : first + GROUP].abs().max()) / (2 ** (codec.bits - 1) - 1), 2.0**-126)
        scale = float(scales[first])
        assert abs(scale - exact) <= 2.0**-16 * exact
        assert math.frexp(scale)[0] * 2**17 % 1 == 0


@given(integers, buffers())
def test_a_number_is_off_by_half_a_step_at_most(name: str, flat: Tensor) -> None:
    codec = INTEGERS[name]
    codes = encoded(codec, flat)
    off = (decoded(codec, codes, len(flat)).double() - flat.double()).abs()
    assert (off <= scales_in(codec, codes, len(flat)) * (0.5 + 2.0**-17)).all()


@given(integers, buffers())
def test_codes_are_the_multiples_of_a_scale_that_are_nearest(name: str, flat: Tensor) -> None:
    codec = INTEGERS[name]
    packed = encoded(codec, flat)
    scales = scales_in(codec, packed, len(flat))
    codes = (flat.double() / scales).round()
    multiples = decoded(codec, packed, len(flat)).double() / scales
    assert (multiples == multiples.round()).all()
    # Where a number is half-way between two, to float32's precision, either may be.
    halfway = ((flat.double() / scales - codes).abs() - 0.5).abs() < 1e-4
    assert ((multiples == codes) | halfway).all()
    assert (multiples.abs() <= 2 ** (codec.bits - 1) - 1).all()


@given(names, buffers())
def test_what_was_decoded_is_encoded_without_a_change(name: CodecName, flat: Tensor) -> None:
    codec = OURS[name]
    codes = encoded(codec, flat)
    once = decoded(codec, codes, len(flat))
    again = encoded(codec, once)
    assert torch.equal(decoded(codec, again, len(flat)), once)
    assert torch.equal(again, codes)


@given(integers, buffers(), st.integers(2, 9))
def test_an_average_of_what_was_decoded_is_encoded_without_a_change(name: str, flat: Tensor, copies: int) -> None:
    codec = INTEGERS[name]
    codes = encoded(codec, flat.clamp(-1e37, 1e37))
    once = decoded(codec, codes, len(flat))
    mean = once.clone()
    for _ in range(copies - 1):
        mean += once
    mean *= 1 / copies
    assert torch.equal(decoded(codec, encoded(codec, mean), len(flat)), once)


@given(names, buffers())
def test_a_number_is_its_decoded_value_and_what_was_left_of_it(name: CodecName, flat: Tensor) -> None:
    codec = OURS[name]
    found = decoded(codec, encoded(codec, flat), len(flat))
    within = found.isfinite()
    left = flat[within] - found[within]
    assert torch.equal(left.double() + found[within].double(), flat[within].double())
    assert torch.equal(left + found[within], flat[within])
    less = flat.clone()
    codec.encode(less, torch.empty(codec.bytes_of(len(flat)), dtype=torch.uint8), subtract=True)
    assert torch.equal(less[within], left)


@given(names, buffers(), st.integers(0, 2**32))
def test_decoding_adds_to_what_is_there(name: CodecName, flat: Tensor, seed: int) -> None:
    codec = OURS[name]
    codes = encoded(codec, flat)
    there = torch.randn(len(flat), generator=torch.Generator().manual_seed(seed))
    expected = there + decoded(codec, codes, len(flat))
    codec.decode(codes, there, add=True)
    assert torch.equal(there, expected)


@given(names, buffers(), st.integers(0, 5))
def test_codes_of_a_part_are_a_part_of_the_codes(name: CodecName, flat: Tensor, groups: int) -> None:
    codec = OURS[name]
    first = min(groups * codec.group, len(flat))
    codes = encoded(codec, flat)
    assert torch.equal(torch.cat([encoded(codec, flat[:first]), encoded(codec, flat[first:])]), codes)


@given(st.integers(0, 10**6))
def test_bytes_are_those_of_codes_and_scales(numbers: int) -> None:
    groups = -(-numbers // 256)
    assert {name: codec.bytes_of(numbers) for name, codec in OURS.items()} == {
        "fp32": 4 * numbers,
        "fp16": 2 * numbers,
        "int8": groups * (4 + 256),
        "int6": groups * (4 + 192),
        "int5": groups * (4 + 160),
        "int4": groups * (4 + 128),
    }


@pytest.mark.parametrize("name", INTEGERS)
def test_every_code_is_packed_beside_every_other(name: str) -> None:
    codec = INTEGERS[name]
    limit = 2 ** (codec.bits - 1) - 1
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-limit, limit + 1, (200, GROUP), generator=generator).float()
    codes[:, 0] = limit  # so that the scale is 1
    assert torch.equal(decoded(codec, encoded(codec, codes.view(-1)), codes.numel()).view_as(codes), codes)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 70, 255, 256, 299])
def test_what_is_not_finite_is_found_after_decoding(name: CodecName, strange: float, place: int) -> None:
    codec = OURS[name]
    flat = torch.randn(300, generator=torch.Generator().manual_seed(1))
    flat[place] = strange
    found = decoded(codec, encoded(codec, flat), 300)
    assert not found[place].isfinite()
    group = slice(0, 256) if place < 256 else slice(256, 300)
    others = slice(256, 300) if place < 256 else slice(0, 256)
    assert found[others].isfinite().all()
    if name in INTEGERS:
        assert not found[group].isfinite().any()


def test_what_float16_cannot_hold_is_infinite() -> None:
    found = decoded(OURS["fp16"], encoded(OURS["fp16"], torch.tensor([1e5, -1e5, 1.0])), 3)
    assert found.tolist() == [math.inf, -math.inf, 1.0]


@pytest.mark.parametrize("name", OURS)
def test_codes_are_the_same_at_any_number_of_threads(name: CodecName) -> None:
    flat = torch.randn(2**18 + 100, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            codes = encoded(OURS[name], flat)
            found.append((codes, decoded(OURS[name], codes, len(flat))))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_buffers_of_another_type_or_size_are_refused() -> None:
    codec = OURS["int8"]
    with pytest.raises(ValueError, match="float64"):
        codec.encode(torch.zeros(256, dtype=torch.float64), torch.empty(260, dtype=torch.uint8))
    with pytest.raises(ValueError, match="260"):
        codec.encode(torch.zeros(256), torch.empty(256, dtype=torch.uint8))
    with pytest.raises(ValueError, match="520"):
        codec.decode(torch.empty(260, dtype=torch.uint8), torch.zeros(257))


def test_there_is_a_codec_of_each_name() -> None:
    assert set(CODECS) == set(get_args(CodecName))
