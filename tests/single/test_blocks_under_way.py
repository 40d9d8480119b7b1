"""Chunks of blocks between hosts: each is averaged and goes on by itself, within the window, and lands on no copy."""

from typing import Any

import numpy as np
import pytest
import torch

from resist_hvd.comm import blocks
from resist_hvd.comm.blocks import WINDOW, Mail, PendingExchange
from resist_hvd.protocol.exchange import exchange
from resist_hvd.protocol.partition import Partition

CHUNK = 16
"""Numbers of a chunk."""

Calls = list[tuple[str, int, Any]]


class Recorder:
    """A communicator that notes what it is asked for, by whom, and does nothing."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls

    def Irecv(self, into: Any, source: int, tag: int) -> None:
        self.calls.append(("receive", source, into))

    def Issend(self, numbers: Any, dest: int, tag: int) -> None:
        self.calls.append(("send", dest, numbers))


class Exchanged:
    """A block of ranks 0 and 1, in four chunks of two parts, on its way to others; rank 0's side of it."""

    def __init__(self, window: int, *next_holders: int) -> None:
        held = [(0,), (0,), ()], [(0,) if rank in next_holders else () for rank in range(3)]
        plan = exchange(*(Partition(tuple(each), 1) for each in held))
        self.calls: Calls = []
        comm = Recorder(self.calls)
        self.told = 0
        self.whole = torch.arange(4.0 * CHUNK)
        self.copy = torch.zeros(2 * CHUNK)
        mail = Mail(comm, {(0, 1): comm}, self.tell)
        self.pending = PendingExchange(0, plan, {0: self.whole}, {(0, 1): self.copy}, mail, window)

    def tell(self) -> None:
        self.told += 1

    def end(self, what: str, other: int, which: int = 0) -> None:
        """Have one of the chunks end that are under way from or to a rank."""
        under_way = [
            ("send", each.message.destination) if each.message.source == 0 else ("receive", each.message.source)
            for each in self.pending._under_way
        ]
        places = [place for place, each in enumerate(under_way) if each == (what, other)]
        self.pending._go_on([places[which]])

    def asked_for(self) -> list[float]:
        """Return what stands first where chunks of rank 1 are to come."""
        return [float(into[0]) for what, other, into in self.calls if (what, other) == ("receive", 1)]

    def sent(self, to: int) -> list[float]:
        """Return the first numbers of the chunks that have been sent to a rank."""
        return [float(numbers[0]) for what, other, numbers in self.calls if (what, other) == ("send", to)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "LEAST_BYTES", 4 * CHUNK)
    monkeypatch.setattr(blocks, "CHUNKS", 2)


def test_a_chunk_is_averaged_and_goes_on_while_others_of_its_part_have_not_come() -> None:
    exchanged = Exchanged(WINDOW, 2)
    assert exchanged.sent(to=1) == [2 * CHUNK, 3 * CHUNK], "the copy of rank 1's part"
    assert exchanged.sent(to=2) == []
    exchanged.copy[:CHUNK] = exchanged.whole[:CHUNK] + 2
    exchanged.end("receive", 1)
    assert exchanged.sent(to=2) == [1.0], "half of 0 + 2"
    np.testing.assert_array_equal(exchanged.whole[: 2 * CHUNK], [*np.arange(1.0, CHUNK + 1), *range(CHUNK, 2 * CHUNK)])
    exchanged.end("receive", 1)
    assert exchanged.sent(to=2) == [1.0, CHUNK / 2]
    assert exchanged.told == 2


def test_no_more_chunks_are_under_way_than_the_window_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "CHUNKS", 4)
    monkeypatch.setattr(blocks, "LEAST_BYTES", 2 * CHUNK)
    exchanged = Exchanged(2, 2)
    assert len(exchanged.sent(to=1)) == 2
    exchanged.end("receive", 1)
    assert exchanged.sent(to=2) == [], "the window is full, whoever its chunks are for"
    exchanged.end("send", 1)
    assert (len(exchanged.sent(to=1)), exchanged.sent(to=2)) == (3, []), "copies go first"
    exchanged.end("send", 1)
    exchanged.end("send", 1)
    assert (len(exchanged.sent(to=1)), len(exchanged.sent(to=2))) == (4, 1)


def test_a_part_comes_where_its_copy_was_chunk_by_chunk_once_those_have_left_and_in_order() -> None:
    exchanged = Exchanged(WINDOW, 0, 1)
    copies = exchanged.asked_for()
    assert copies == [0.0, 0.0], "rank 1's copy of rank 0's part"
    exchanged.end("send", 1, which=1)
    assert exchanged.asked_for() == copies, "the first chunk has not left"
    exchanged.end("send", 1)
    assert exchanged.asked_for() == [*copies, 2 * CHUNK, 3 * CHUNK]
