"""Averages that go on beside other work, and the thread that advances them."""

import threading
import time

import pytest
import torch

from resist_hvd.comm.courier import Courier
from resist_hvd.comm.shift import Shift
from resist_hvd.comm.transport import Transport
from resist_hvd.comm.world import World

NUMBERS = 100_003  # cut into several pieces, the last of them shorter


def own(world: World, number: int = 0) -> torch.Tensor:
    """A buffer of this rank's."""
    return torch.arange(NUMBERS, dtype=torch.float64) * (1 + world.rank) + number


def test_a_shift_leads_from_what_departed_to_the_average(world: World) -> None:
    transport = Transport(world)
    flat = torch.empty(NUMBERS, dtype=torch.float64)
    shift = transport.make_shift(flat, "test.shift")
    for number in range(3):
        flat.copy_(own(world, number))
        transport.begin_shift(shift)
        deadline = time.monotonic() + 60
        while not shift.advance():
            assert time.monotonic() < deadline
        shift.finish()
        average = torch.arange(NUMBERS, dtype=torch.float64) * (1 + world.size) / 2 + number
        torch.testing.assert_close(own(world, number) + flat, average, rtol=1e-12, atol=1e-6)
    ring = 2 * flat.nbytes * (world.size - 1) // world.size
    assert transport.sent.trunk == 3 * ring


@pytest.mark.world_size(2)
def test_a_thread_advances_while_the_main_thread_does_something_else(world: World) -> None:
    flat = own(world)
    shift = Shift(world, flat, "test.courier", staged=False)
    shift.begin()
    waits, hidden = world.activity.wait, world.stopwatch.seconds["hidden"]
    courier = Courier(world, {"trunk": shift})
    deadline = time.monotonic() + 60
    while any(thread.name == "courier" for thread in threading.enumerate()):
        assert world.activity.waits == 0  # nobody is to think that this rank waits for others
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert world.activity.wait == waits
    courier.finish()
    assert world.activity.wait == waits + 1
    assert world.stopwatch.seconds["hidden"] > hidden


class Failing:
    """Communication that breaks."""

    def advance(self) -> bool:
        raise RuntimeError("cut off")


class Late:
    """Communication that ends once the main thread waits for it."""

    def __init__(self, world: World) -> None:
        self.world = world

    def advance(self) -> bool:
        return self.world.activity.waits > 0


def test_an_error_in_the_thread_is_raised_where_it_is_awaited(world: World) -> None:
    with pytest.raises(RuntimeError, match="cut off"):
        Courier(world, {"trunk": Failing()}).finish()


def test_what_is_not_done_in_time_is_waited_for(world: World) -> None:
    watch = world.stopwatch
    before = watch.seconds.copy()
    Courier(world, {"blocks": Late(world), "trunk": Late(world)}).finish()
    assert watch.seconds["blocks"] > before["blocks"]
    assert world.activity.waits == 0
