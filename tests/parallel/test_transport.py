"""What the transport moves arrives, straight or by host memory, and it counts what it hands over."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor

from resist_hvd.comm import blocks
from resist_hvd.comm.transport import Transport
from resist_hvd.comm.world import World
from resist_hvd.protocol.exchange import exchange, ring_bytes
from resist_hvd.protocol.partition import Partition
from resist_hvd.protocol.rule import Rule

DECKS = (7, 0, 4)
MIN_BLOCKS = 3

Blocks = dict[int, Tensor]


def size_of(block: int) -> int:
    """Numbers in a block: another size in each deck."""
    return 1000 if block < DECKS[0] else 333


def content(block: int, rank: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + block)
    return torch.rand(size_of(block), generator=generator, dtype=dtype)


def rounds(
    world: World, transport: Transport, count: int, dtype: torch.dtype, *, advances: bool = False
) -> Iterator[tuple[Partition, Blocks]]:
    """Exchange blocks for some rounds; yield each new partition and what this rank then holds.

    Args:
        advances: whether the exchange is advanced until it is done, and not waited for.
    """
    before = Rule(DECKS, world.size, MIN_BLOCKS).deal(0)
    held = {block: content(block, world.rank, dtype) for block in before.held[world.rank]}
    for seed in range(1, count + 1):
        after = Rule(DECKS, world.size, MIN_BLOCKS).deal(seed)
        arriving = {b: torch.empty(size_of(b), dtype=dtype) for b in after.held[world.rank] if b not in held}
        plan = exchange(before, after)
        sent = transport.sent
        pending = transport.begin_exchange(plan, held, arriving)
        while advances and not pending.advance():
            pass
        transport.finish_exchange(pending)
        sizes = tuple(size_of(block) * dtype.itemsize for block in range(sum(DECKS)))
        assert (transport.sent - sent).blocks == plan.bytes_sent(world.rank, sizes, dtype.itemsize)
        held = {block: {**held, **arriving}[block] for block in after.held[world.rank]}
        before = after
        yield after, held


def make(world: World, *, staged: bool) -> Transport:
    return Transport(world, Rule(DECKS, world.size, MIN_BLOCKS).groups, staged=staged)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_holder_has_the_average_of_the_holders_before(staged: bool, dtype: torch.dtype, world: World) -> None:
    first = Rule(DECKS, world.size, MIN_BLOCKS).deal(0)
    for after, held in rounds(world, make(world, staged=staged), 3, dtype):
        assert tuple(held) == after.held[world.rank]
        for block, value in held.items():
            # Averages of equal values change nothing: after the first round all are what the first made of them.
            mean = torch.stack([content(block, rank, dtype) for rank in first.holders[block]]).mean(dim=0)
            torch.testing.assert_close(value, mean)


@pytest.mark.parametrize("chunk", [64, 2**20])
@pytest.mark.parametrize("advances", [False, True])
def test_chunks_between_hosts_change_no_bit(
    chunk: int, advances: bool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "LEAST_BYTES", chunk)
    whole, in_chunks = make(world, staged=False), make(world, staged=False)
    in_chunks._window = 6
    plain = rounds(world, whole, 4, torch.float32)
    cut = rounds(world, in_chunks, 4, torch.float32, advances=advances)
    for (_, one), (_, other) in zip(plain, cut, strict=True):
        assert all(torch.equal(one[block], other[block]) for block in one)
    assert in_chunks.sent == whole.sent


@pytest.mark.parametrize("by_advancing", [False, True])
def test_whatever_comes_or_goes_is_told_to_those_who_watch(
    by_advancing: bool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = make(world, staged=False)
    transport._window = 2
    monkeypatch.setattr(blocks, "LEAST_BYTES", 64)
    told = []
    monkeypatch.setattr(world.activity, "progress", lambda: told.append(world.activity.waits))
    for _ in rounds(world, transport, 1, torch.float32, advances=by_advancing):
        messages = transport.sent.blocks > 0
        waiting = sum(waits > 0 for waits in told)
        assert not messages or len(told) > 8, "each of several chunks"
        assert by_advancing or not messages or waiting > 8, "while it waits for others"


def test_the_way_by_host_memory_changes_no_bit(world: World) -> None:
    straight = rounds(world, make(world, staged=False), 3, torch.float32)
    staged = rounds(world, make(world, staged=True), 3, torch.float32)
    for (_, one), (_, other) in zip(straight, staged, strict=True):
        assert all(torch.equal(one[block], other[block]) for block in one)


@pytest.mark.parametrize("staged", [False, True])
def test_all_holders_have_the_same_bits(staged: bool, world: World) -> None:
    for _, held in rounds(world, make(world, staged=staged), 2, torch.float32):
        everyone = world.gather_objects({block: value.numpy().tobytes() for block, value in held.items()})
        for block in range(sum(DECKS)):
            assert len({theirs[block] for theirs in everyone if block in theirs}) == 1


@pytest.mark.parametrize("staged", [False, True])
def test_an_average_of_all_workers(staged: bool, world: World) -> None:
    transport = make(world, staged=staged)
    for count in (1, 1000, 10**6):
        flat = torch.arange(count, dtype=torch.float32) + world.rank
        transport.finish(transport.start_average(flat, f"test.{count}"))
        torch.testing.assert_close(flat, torch.arange(count, dtype=torch.float32) + (world.size - 1) / 2)
    assert transport.sent.trunk == sum(ring_bytes(4 * count, world.size) for count in (1, 1000, 10**6))


@pytest.mark.parametrize(
    ("device", "by_nccl", "stages"),
    [("cpu", False, (False, False)), ("cuda", True, (False, True)), ("cuda", False, (True, True))],
)
def test_what_mpi_sends_from_a_gpu_passes_through_host_memory(
    device: str, by_nccl: bool, stages: tuple[bool, bool], world: World
) -> None:
    transport = Transport(replace(world, device=torch.device(device), averages_on_gpus=by_nccl))
    assert (transport._stages_collectives, transport._stages_messages) == stages


def test_an_exchange_may_run_beside_an_average(world: World) -> None:
    transport = make(world, staged=False)
    flat = torch.full((10**6,), float(world.rank))
    pending = transport.start_average(flat, "beside")
    for _, held in rounds(world, transport, 2, torch.float32):
        assert held
    transport.finish(pending)
    assert torch.equal(flat, torch.full_like(flat, (world.size - 1) / 2))


@pytest.mark.parametrize("staged", [False, True])
def test_a_broadcast_from_any_rank(staged: bool, world: World) -> None:
    transport = make(world, staged=staged)
    for root in range(world.size):
        for count in (10, 5):
            flat = torch.full((count,), float(world.rank))
            transport.broadcast(flat, root)
            assert flat.tolist() == [float(root)] * count


def test_a_broadcast_copies_out_of_the_root_alone_and_into_the_others_alone(world: World) -> None:
    transport = make(world, staged=True)
    for root in range(world.size):
        flat = torch.full((10,), float(world.rank))
        transport.broadcast(flat, root)
        assert (flat._version > 0) == (world.rank != root), "what has come was copied"
    passed_through = transport._host_copies["broadcast", 0]
    assert passed_through._version == 1, "each rank was root once"


class Counting:
    """An MPI communicator that adds up the payload of what passes through it."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm = comm
        self.sent = 0

    def Isend(self, message: np.ndarray[Any, Any], **destination: int) -> MPI.Request:
        self.sent += message.nbytes
        return self.comm.Isend(message, **destination)

    def Issend(self, message: np.ndarray[Any, Any], **destination: int) -> MPI.Request:
        self.sent += message.nbytes
        return self.comm.Issend(message, **destination)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.comm, name)


@pytest.mark.parametrize("between_hosts", [False, True])
def test_what_is_counted_is_what_mpi_is_given(between_hosts: bool, world: World) -> None:
    transport = make(world, staged=False)
    if between_hosts:
        transport._window = blocks.WINDOW
    communicators = [Counting(transport._messages), *map(Counting, transport._groups.values())]
    transport._messages = communicators[0]
    transport._groups = dict(zip(transport._groups, communicators[1:], strict=True))
    for _ in rounds(world, transport, 3, torch.float32):
        assert transport.sent.blocks == sum(counting.sent for counting in communicators)
    assert transport.sent.blocks > 0 or world.size == 1
