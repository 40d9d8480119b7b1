"""Blocks that are exchanged in few bits: equal bits with all holders, near the average, bytes as foreseen."""

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from resist_hvd.comm import blocks
from resist_hvd.comm.codec import CODECS
from resist_hvd.comm.encoded_blocks import EncodedExchange, part_of
from resist_hvd.comm.transport import Transport
from resist_hvd.comm.world import World
from resist_hvd.protocol.exchange import Exchange, exchange
from resist_hvd.protocol.partition import Partition
from resist_hvd.protocol.rule import Rule
from resist_hvd.settings.exchange import CodecName

DECKS = (7, 0, 4)
ENCODED: tuple[CodecName, ...] = ("fp16", "int8", "int6", "int5", "int4")
STEPS = {"fp16": 2**10, "int8": 127, "int6": 31, "int5": 15, "int4": 7}

Blocks = dict[int, Tensor]


def size_of(block: int) -> int:
    """Numbers in a block: another size in each deck."""
    return 1000 if block < DECKS[0] else 333


def content(block: int, rank: int) -> Tensor:
    return torch.randn(size_of(block), generator=torch.Generator().manual_seed(1000 * rank + block))


def rule(world: World, min_blocks: int) -> Rule:
    return Rule(DECKS, world.size, min_blocks)


def make(world: World, min_blocks: int, codec: CodecName, *, staged: bool = False) -> Transport:
    return Transport(world, rule(world, min_blocks).groups, staged=staged, block_codec=codec)


def rounds(
    world: World, transport: Transport, min_blocks: int, count: int = 3, *, exact: bool = False
) -> Iterator[tuple[Partition, Exchange, Blocks, Blocks]]:
    """Exchange blocks, which each holder changes in each round; yield partitions, plans and blocks before and after."""
    before = rule(world, min_blocks).deal(0)
    held = {block: content(block, world.rank) for block in before.held[world.rank]}
    for seed in range(1, count + 1):
        after = rule(world, min_blocks).deal(seed)
        for block, numbers in held.items():
            numbers += 0.1 * content(block, 10 * seed + world.rank)
        was = {block: numbers.clone() for block, numbers in held.items()}
        arriving = {b: torch.full((size_of(b),), torch.nan) for b in after.held[world.rank] if b not in held}
        plan = exchange(before, after)
        transport.exchange(plan, held, arriving, exact=exact)
        held = {block: {**held, **arriving}[block] for block in after.held[world.rank]}
        yield before, plan, was, {block: numbers.clone() for block, numbers in held.items()}
        before = after


@pytest.mark.parametrize("min_blocks", [0, 3, 5, 7])
@pytest.mark.parametrize("codec", ENCODED)
def test_all_holders_have_the_same_bits_near_the_average(codec: CodecName, min_blocks: int, world: World) -> None:
    for before, plan, was, held in rounds(world, make(world, min_blocks, codec), min_blocks):
        everyone = world.gather_objects((was, held))
        for block in range(sum(DECKS)):
            copies = [theirs[block] for theirs, _ in everyone if block in theirs]
            ends = [theirs[block] for _, theirs in everyone if block in theirs]
            assert all(torch.equal(end, ends[0]) for end in ends)
            mean = torch.stack(copies).double().mean(0)
            most = max(float(copy.abs().max()) for copy in copies)
            assert float((ends[0] - mean).abs().max()) <= 1.02 * most / STEPS[codec]  # half a step twice
            stays = plan.next_holders[block] == before.holders[block] == plan.owners[block] and len(copies) == 1
            assert torch.equal(ends[0], copies[0]) == stays


@pytest.mark.parametrize("name", ENCODED)
def test_bytes_are_those_of_the_codes_of_each_message(name: CodecName, world: World) -> None:
    transport = make(world, 5, name)
    codec = CODECS[name](torch.device("cpu"))
    expected = 0
    for _, plan, _, _ in rounds(world, transport, 5):
        for message in (*plan.shares, *plan.fetches):
            if message.source == world.rank:
                part = part_of(plan, message, size_of(message.block), codec.group)
                expected += codec.bytes_of(part.stop - part.start)
        assert transport.sent.blocks == expected
    assert expected > 0 or world.size == 1


@pytest.mark.parametrize("codec", ENCODED)
def test_the_way_by_host_memory_changes_no_bit(codec: CodecName, world: World) -> None:
    straight, staged = (rounds(world, make(world, 5, codec, staged=staged), 5) for staged in (False, True))
    for one, other in zip(straight, staged, strict=True):
        assert all(torch.equal(one[3][block], other[3][block]) for block in one[3])


def test_an_exact_exchange_is_as_without_a_codec(world: World) -> None:
    plain = rounds(world, make(world, 5, "fp32"), 5)
    exact = rounds(world, make(world, 5, "int8"), 5, exact=True)
    for one, other in zip(plain, exact, strict=True):
        assert all(torch.equal(one[3][block], other[3][block]) for block in one[3])


def test_advancing_is_as_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def patiently(pending: EncodedExchange) -> None:
        while not pending.advance():
            time.sleep(0.001)

    waited = list(rounds(world, make(world, 5, "int6"), 5))
    monkeypatch.setattr(EncodedExchange, "finish", patiently)
    for one, other in zip(waited, rounds(world, make(world, 5, "int6"), 5), strict=True):
        assert all(torch.equal(one[3][block], other[3][block]) for block in one[3])


@pytest.mark.parametrize("codec", ENCODED)
def test_chunks_by_turns_change_no_bit(codec: CodecName, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(world, 5, codec)
    in_chunks = make(world, 5, codec)
    in_chunks._window = 6
    monkeypatch.setattr(blocks, "LEAST_BYTES", 64)
    for one, other in zip(rounds(world, whole, 5), rounds(world, in_chunks, 5), strict=True):
        assert all(torch.equal(one[3][block], other[3][block]) for block in one[3])
    assert whole.sent == in_chunks.sent


def test_codes_take_their_memory_once(world: World) -> None:
    transport = make(world, 5, "int8")
    seen = set()
    for _ in range(2):
        for _ in rounds(world, transport, 5, 6):
            pass
        seen.add(transport._room._codes.data_ptr())
    assert len(seen) == 1


@pytest.mark.parametrize("min_blocks", [0, 5])
@pytest.mark.parametrize("codec", ["int8", "int6", "int4"])
def test_what_is_not_trained_stays_as_it_was_first_encoded(codec: CodecName, min_blocks: int, world: World) -> None:
    transport = make(world, min_blocks, codec)
    coder = CODECS[codec](torch.device("cpu"))
    before = rule(world, min_blocks).deal(0)
    held = {block: content(block, 0) for block in before.held[world.rank]}
    for numbers in held.values():
        codes = torch.empty(coder.bytes_of(len(numbers)), dtype=torch.uint8)
        coder.encode(numbers, codes)
        coder.decode(codes, numbers)
    first = {block: numbers.clone() for theirs in world.gather_objects(held) for block, numbers in theirs.items()}
    for seed in range(1, 9):
        after = rule(world, min_blocks).deal(seed)
        arriving = {b: torch.empty(size_of(b)) for b in after.held[world.rank] if b not in held}
        transport.exchange(exchange(before, after), held, arriving)
        held = {block: {**held, **arriving}[block] for block in after.held[world.rank]}
        assert all(torch.equal(numbers, first[block]) for block, numbers in held.items())
        before = after
