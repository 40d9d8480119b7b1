"""Averages by encoded changes: equal bits on all ranks, no change lost, bytes as counted."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from resist_hvd.comm import blocks, changes
from resist_hvd.comm.transport import Transport
from resist_hvd.comm.world import World
from resist_hvd.protocol.codes import GROUP, encoded_bytes
from resist_hvd.protocol.exchange import ring_bytes
from resist_hvd.protocol.pieces import Pieces
from resist_hvd.settings.exchange import CodecName, ExchangeSettings

from .test_transport import Counting

ENCODED: tuple[CodecName, ...] = ("fp16", "int8", "int6", "int4")
WAYS: tuple[tuple[CodecName, float], ...] = (*((codec, 1.0) for codec in ENCODED), ("fp32", 0.25), ("int8", 0.1))
CPU = torch.device("cpu")
LENGTHS = (1, 255, 1500, 70_000)


def begin(length: int) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(length))


def step(flat: Tensor, rank: int, number: int) -> Tensor:
    """Return a rank's change in a round."""
    generator = torch.Generator().manual_seed(1000 * number + rank)
    return torch.randn(len(flat), generator=generator) * 0.01 * (1 + number)


class Averaged:
    """A buffer that is averaged by its changes."""

    def __init__(
        self, world: World, length: int, codec: CodecName, *, keep: float = 1.0, staged: bool | None = None
    ) -> None:
        self.transport = Transport(world, staged=staged)
        self.flat = begin(length)
        self.changes = self.transport.count_changes(self.flat, ExchangeSettings(trunk=codec, keep=keep))

    @property
    def kept(self) -> dict[str, Tensor]:
        return self.changes.tensors if self.changes else {}

    def average(self, *, exact: bool = False) -> None:
        name = f"changes.{len(self.flat)}"
        self.transport.finish(self.transport.start_average(self.flat, name, self.changes, exact=exact))


def everywhere(world: World, flat: Tensor) -> list[bytes]:
    return world.gather_objects(flat.numpy().tobytes())


def unsent(averaged: Averaged, world: World) -> Tensor:
    """Return what is still to come of all ranks' changes, divided by their number, in double precision."""
    return torch.stack(world.gather_objects(averaged.kept["left"].double())).mean(0)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize(("codec", "keep"), WAYS)
def test_all_ranks_have_the_same_bits_and_nothing_is_lost(
    codec: CodecName, keep: float, staged: bool, world: World
) -> None:
    for length in LENGTHS:
        averaged = Averaged(world, length, codec, keep=keep, staged=staged)
        flat, exact = averaged.flat, averaged.flat.double()
        for number in range(3):
            flat += step(flat, world.rank, number)
            exact += torch.stack([step(flat, rank, number) for rank in range(world.size)]).double().mean(0)
            averaged.average()
            assert len(set(everywhere(world, flat))) == 1
            if world.size > 1:
                assert torch.equal(averaged.kept["reference"], flat)
                torch.testing.assert_close(
                    flat.double() + unsent(averaged, world), exact, rtol=0, atol=2e-6, msg=f"{length} {number}"
                )
        averaged.average(exact=True)
        torch.testing.assert_close(flat.double(), exact, rtol=0, atol=2e-6)
        assert len(set(everywhere(world, flat))) == 1
        if world.size > 1:
            assert torch.equal(averaged.kept["reference"], flat)
            assert not averaged.kept["left"].any()


@pytest.mark.parametrize(("codec", "keep"), WAYS)
def test_an_average_beside_steps_is_that_without_them_less_what_departed(
    codec: CodecName, keep: float, world: World
) -> None:
    if world.size == 1:
        pytest.skip("a world of one encodes nothing")
    beside, waited = (Averaged(world, 70_000, codec, keep=keep) for _ in range(2))
    copy = beside.flat.clone()
    shift = beside.transport.make_shift(copy, "early", beside.changes)
    for number in range(2):
        change = step(copy, world.rank, number)
        waited.flat += change
        waited.average()
        departed = copy.add_(change).clone()
        beside.transport.begin_shift(shift)
        with ThreadPoolExecutor(1) as elsewhere:
            while not elsewhere.submit(shift.advance).result():
                time.sleep(0.001)
        shift.finish()
        assert torch.equal(copy, waited.flat - departed)
        assert all(torch.equal(beside.kept[name], tensor) for name, tensor in waited.kept.items())
        copy.copy_(waited.flat)
    assert beside.transport.sent == waited.transport.sent


@pytest.mark.parametrize("codec", ENCODED)
def test_a_change_is_off_by_no_more_than_its_codes_can_say(codec: CodecName, world: World) -> None:
    averaged = Averaged(world, 3000, codec)
    steps = [step(averaged.flat, rank, 0) for rank in range(world.size)]
    expected = averaged.flat + torch.stack(steps).mean(0)
    averaged.flat += steps[world.rank]
    averaged.average()
    most = max(float(change.abs().max()) for change in steps)
    codes = {"fp16": 2**11, "int8": 127, "int6": 31, "int4": 7}[codec]
    off = (averaged.flat - expected).abs().max()
    assert off <= 1.01 * most / codes  # half a step twice: each rank's, and the owner's
    assert off > 0 or world.size == 1


@pytest.mark.parametrize(("codec", "keep"), WAYS)
def test_bytes_are_those_of_codes_sent_to_owners_and_of_means_sent_to_all(
    codec: CodecName, keep: float, world: World
) -> None:
    averaged = Averaged(world, 70_000, codec, keep=keep)
    averaged.average()
    before = averaged.transport.sent.trunk
    assert sum(world.gather_objects(before)) == 2 * (world.size - 1) * encoded_bytes(codec, 70_000, keep)
    averaged.average(exact=True)
    assert averaged.transport.sent.trunk - before == ring_bytes(averaged.flat.nbytes, world.size)


@pytest.mark.parametrize(("codec", "keep"), WAYS)
def test_going_on_from_what_was_kept_is_as_if_never_stopped(codec: CodecName, keep: float, world: World) -> None:
    whole, parted = (Averaged(world, 2000, codec, keep=keep) for _ in range(2))
    for number in range(4):
        whole.flat += step(whole.flat, world.rank, number)
        whole.average()
        if number == 1:
            parted.flat.copy_(whole.flat)
            for name, tensor in parted.kept.items():
                tensor.copy_(whole.kept[name])
        elif number > 1:
            parted.flat += step(parted.flat, world.rank, number)
            parted.average()
    assert torch.equal(whole.flat, parted.flat)


def test_a_number_that_is_not_finite_reaches_all(world: World) -> None:
    averaged = Averaged(world, 1500, "int8")
    if world.rank == world.size - 1:
        averaged.flat[700] = torch.nan
    averaged.average()
    assert not averaged.flat[700].isfinite()
    assert averaged.flat[:512].isfinite().all()


def test_what_is_not_encoded_keeps_nothing(world: World) -> None:
    assert Averaged(world, 100, "fp32").changes is None


def test_what_is_counted_is_what_mpi_is_given(world: World) -> None:
    averaged = Averaged(world, 70_000, "int6")
    if averaged.changes is None:
        assert world.size == 1
        return
    counting = [Counting(averaged.changes._mail.everyone), *map(Counting, averaged.changes._mail.groups.values())]
    groups = dict(zip(averaged.changes._mail.groups, counting[1:], strict=True))
    averaged.changes._mail = averaged.changes._mail._replace(everyone=counting[0], groups=groups)
    averaged.average()
    assert averaged.transport.sent.trunk == sum(each.sent for each in counting) > 0


@pytest.mark.parametrize(("codec", "keep"), WAYS)
def test_chunks_by_turns_change_no_bit(
    codec: CodecName, keep: float, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "LEAST_BYTES", 64)
    monkeypatch.setattr(changes, "LEAST_BYTES", 128)
    whole, in_chunks = (Averaged(world, 5000, codec, keep=keep) for _ in range(2))
    if in_chunks.changes is not None:
        in_chunks.changes._window = 6
    for number in range(2):
        for averaged in (whole, in_chunks):
            averaged.flat += step(averaged.flat, world.rank, number)
            averaged.average()
    assert torch.equal(whole.flat, in_chunks.flat)


@pytest.mark.parametrize("count", [1, 3])
def test_an_oracle_sends_the_same_largest_changes(count: int, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In double precision, in one process: each rank's largest changes, and of their mean the largest numbers."""
    length, share = 9000, GROUP * 4
    groups, size = -(-length // share), world.size
    monkeypatch.setattr(changes, "LEAST_BYTES", groups * encoded_bytes("fp32", share, 0.25) // (size * count))
    averaged = Averaged(world, length, "fp32", keep=0.25)
    averaged.flat.zero_()  # so that rounding is far from changing which of two numbers is larger
    if averaged.changes is not None:
        averaged.changes.restart()
    owned = [torch.zeros(length, dtype=torch.bool) for _ in range(size)]
    for piece in range(count):
        for owner in range(size):
            part = Pieces(groups, size, count).part(piece, owner)
            owned[owner][part.start * share : part.stop * share] = True
    reference, left = torch.zeros(length, dtype=torch.float64), torch.zeros(size, length, dtype=torch.float64)
    for number in range(4):
        steps = torch.stack([step(averaged.flat, rank, number) for rank in range(size)])
        averaged.flat += steps[world.rank]
        averaged.average()
        left += steps
        mean = torch.zeros(length, dtype=torch.float64)
        for rank, change in enumerate(left):
            sent = torch.where(owned[rank], change, largest(change, share))
            mean += sent / size
            change -= sent
        sent = largest(mean, share) if size > 1 else mean
        reference += sent
        for rank, change in enumerate(left):
            change += torch.where(owned[rank], size * (mean - sent), 0)
        torch.testing.assert_close(averaged.flat.double(), reference, rtol=0, atol=2e-6)
        if averaged.changes is not None:
            assert averaged.changes._pieces.count == count
            torch.testing.assert_close(averaged.kept["left"].double(), left[world.rank], rtol=0, atol=2e-6)


def largest(numbers: Tensor, share: int) -> Tensor:
    """Return a buffer in which of each group all but the largest are zero."""
    found = torch.zeros_like(numbers)
    for first in range(0, len(numbers), share):
        group = numbers[first : first + share]
        places = group.abs().topk(min(GROUP, len(group))).indices
        found[first : first + share][places] = group[places]
    return found
