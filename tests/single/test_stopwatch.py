"""Seconds of a device that works on while its process is elsewhere: by a device and a clock that are made up."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from resist_hvd import stopwatch
from resist_hvd.stopwatch import Stopwatch


class Device:
    """A GPU with one stream, and the process that gives it work; times are in milliseconds."""

    def __init__(self) -> None:
        self.host = 0.0
        self.done = 0.0
        self.synchronised = 0

    def wait(self, milliseconds: float) -> None:
        """The process waits, or computes itself."""
        self.host += milliseconds

    def launch(self, milliseconds: float) -> None:
        """The process hands over work, and goes on at once."""
        self.done = self.point() + milliseconds

    def wait_until(self, moment: float) -> None:
        self.host = max(self.host, moment)

    def point(self) -> float:
        """When the device has done what it was given, or, with nothing left to do, now."""
        return max(self.host, self.done)

    def record(self) -> Event:
        return Event(self, self.point())


@dataclass
class Event:
    device: Device
    moment: float

    def synchronize(self) -> None:
        self.device.wait_until(self.moment)
        self.device.synchronised += 1

    def elapsed_time(self, end_event: Event) -> float:
        assert max(self.moment, end_event.moment) <= self.device.host, "the device has not come to it yet"
        return end_event.moment - self.moment


def steps(device: Device, watch: Stopwatch, count: int, *, data: float, compute: float) -> None:
    for _ in range(count):
        with watch.measure("data"):
            device.wait(data)
        with watch.measure("compute"):
            device.launch(compute)


@pytest.mark.parametrize(
    ("data", "starved"),
    [
        # The first batch is always waited for; then a batch is there before the device has done the step before it.
        (3.0, 3.0),
        (80.0, 80.0),
        # 96 ms a batch, 80 ms a step: the device stands still for 16 ms of each, where the process waits for 96.
        (96.0, 96.0 + 9 * 16.0),
    ],
)
def test_a_device_waits_for_data_only_while_it_has_nothing_to_do(data: float, starved: float) -> None:
    device = Device()
    watch = Stopwatch(device.record)
    steps(device, watch, 10, data=data, compute=80.0)
    assert device.synchronised == 0, "the process must never wait in between"
    seconds = watch.seconds
    assert seconds["data"] == pytest.approx(starved / 1e3)
    assert seconds["compute"] == pytest.approx(0.8)
    assert device.done / 1e3 == pytest.approx(seconds["data"] + seconds["compute"])


def test_the_rest_of_the_arithmetic_is_no_wait_for_an_average() -> None:
    # The process comes to wait at once, the device has 50 ms to go. Of three averages one arrives before that.
    device = Device()
    watch = Stopwatch(device.record)
    device.launch(50.0)
    for arrives in (20.0, 55.0, 60.0):
        with watch.measure("trunk"):
            device.wait_until(arrives)
    assert watch.seconds["trunk"] == pytest.approx(0.010)


def test_what_is_read_is_counted_once_and_goes_on() -> None:
    device = Device()
    watch = Stopwatch(device.record)
    steps(device, watch, 2, data=5.0, compute=1.0)
    before = watch.seconds.copy()
    assert watch.seconds == before
    steps(device, watch, 1, data=7.0, compute=1.0)
    # The last millisecond of the step before is done while the process waits.
    assert watch.seconds["data"] - before["data"] == pytest.approx(0.007)


def test_points_are_let_go_of_when_nobody_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "MOST_UNREAD", 10)
    device = Device()
    watch = Stopwatch(device.record)
    steps(device, watch, 100, data=1.0, compute=0.5)
    assert len(watch._unread) < 10
    assert watch.seconds["data"] == pytest.approx(0.001 + 99 * 0.0005)


def test_a_phase_that_fails_asks_nothing_of_the_device() -> None:
    device = Device()
    asked: list[Event] = []

    def record() -> Event:
        asked.append(device.record())
        return asked[-1]

    def fail(watch: Stopwatch) -> None:
        with watch.measure("compute"):
            raise RuntimeError("out of memory")

    watch = Stopwatch(record)
    watch.spans = []
    with pytest.raises(RuntimeError, match="out of memory"):
        fail(watch)
    assert len(asked) == 1, "a device that has failed would only fail again"
    assert [span.name for span in watch.spans] == ["compute"]
    assert watch.seconds["compute"] == 0
