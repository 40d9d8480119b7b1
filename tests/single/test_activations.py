"""Activations that do not fit on the device wait in host memory, and come to it when they are needed."""

from dataclasses import dataclass
from typing import Any, cast

import pytest

from resist_hvd.training import evaluate
from resist_hvd.training.evaluate import Activations

ROOM = 100
HOST, DEVICE = "cpu", "device"


@dataclass(frozen=True)
class Batch:
    """What stands for a batch of activations: where it is, how large it is, and which one."""

    number: int
    nbytes: int
    place: str = DEVICE

    def to(self, place: str) -> "Batch":
        return Batch(self.number, self.nbytes, place)


def places(activations: Activations) -> list[str]:
    return [cast(Any, batch).place for batch in activations._batches]


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "ACTIVATIONS_AT_ONCE", ROOM)


def test_what_does_not_fit_waits_in_host_memory() -> None:
    activations = Activations(cast(Any, (Batch(number, 40) for number in range(4))), cast(Any, DEVICE))
    assert places(activations) == [DEVICE, DEVICE, HOST, HOST]
    # Everybody who asks sees all of them on the device, in order, as often as he asks.
    for _ in range(2):
        assert [cast(Any, batch) for batch in activations] == [Batch(number, 40) for number in range(4)]
    assert places(activations) == [DEVICE, DEVICE, HOST, HOST]


def test_a_stage_sees_all_of_them_on_the_device_and_smaller_ones_come_back() -> None:
    activations = Activations(cast(Any, (Batch(number, 40) for number in range(4))), cast(Any, DEVICE))
    seen: list[Batch] = []

    def halve(batch: Batch) -> Batch:
        seen.append(batch)
        return Batch(batch.number, batch.nbytes // 2)

    activations.pass_through(cast(Any, halve))
    assert seen == [Batch(number, 40) for number in range(4)]
    assert places(activations) == [DEVICE] * 4
    assert [cast(Any, batch) for batch in activations] == [Batch(number, 20) for number in range(4)]


def test_they_may_be_none() -> None:
    activations = Activations([], cast(Any, DEVICE))
    activations.pass_through(cast(Any, None))
    assert list(activations) == []
