"""Seconds of a GPU that works on while its process waits, by CUDA events."""

import time

import pytest
import torch

from resist_hvd.comm.devices import record_event
from resist_hvd.stopwatch import Stopwatch

CYCLES = 400_000_000
"""Of a kernel that does nothing but count them: some 0.2 s."""


@pytest.mark.parametrize("share", [0.2, 1.5, 2.0])
def test_a_gpu_waits_only_once_it_has_nothing_left_to_do(share: float, gpu: torch.device) -> None:
    watch = Stopwatch(record_event)
    torch.cuda._sleep(CYCLES)  # the first time the kernel is loaded, too
    with watch.measure("compute"):
        torch.cuda._sleep(CYCLES)
    step = watch.seconds["compute"]
    torch.cuda._sleep(CYCLES)
    began = time.perf_counter()
    with watch.measure("data"):
        time.sleep(share * step)
    waited = time.perf_counter() - began
    torch.cuda._sleep(CYCLES)
    assert watch.seconds["data"] == pytest.approx(max(0.0, waited - step), abs=0.15 * step)
