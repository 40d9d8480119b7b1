"""`bench loader` on a GPU: what is timed, and how much of it, by a device and a clock that are made up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from resist_hvd.benchmarks import loader
from resist_hvd.benchmarks.loader import LoaderSettings, images_a_second, in_advance
from resist_hvd.settings.data import DataSettings

from .test_stopwatch import Device

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
OWN = DataSettings(name="imagenet", root=Path("imagenet"), batch_size=32, decode_threads=2)


def made_by(device: Device, *, waits: bool) -> Iterator[int]:
    """Batches that a device takes 10 ms for each; `waits`: their maker waits for each of them."""
    number = 0
    while True:
        device.launch(10.0)
        if waits:
            device.wait_until(device.done)
        yield number
        number += 1


@pytest.mark.parametrize("waits", [True, False])
def test_batches_that_are_under_way_before_do_not_count(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(loader, "record_event", device.record)
    batches = made_by(device, waits=waits)
    rate = images_a_second(batches, OWN, 6, GPU, settle=0.0)
    assert rate == pytest.approx(32 / 0.010)
    assert next(batches) == in_advance(OWN) + 6


def test_a_gpus_steps_are_many_times_the_batches_that_are_ready() -> None:
    settings = LoaderSettings(steps=4, data=OWN)
    assert settings.timed_steps(gpu=False) == 4
    assert settings.timed_steps(gpu=True) == 8 * (OWN.prefetch + 1)
    assert LoaderSettings(steps=100, data=OWN).timed_steps(gpu=True) == 100
