"""Seconds of a GPU that works on while its process waits, by CUDA events; and its memory."""

import time

import pytest
import torch

from resist_hvd.comm.devices import finish, record_event
from resist_hvd.stopwatch import Stopwatch
from resist_hvd.training.memory import TrainingMemory

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


def test_what_other_streams_do_is_not_waited_for(gpu: torch.device) -> None:
    own, other = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(torch.cuda.Stream(gpu)):  # type: ignore[no-untyped-call]
        torch.cuda._sleep(8 * CYCLES)
        other.record()
    torch.cuda._sleep(CYCLES)
    own.record()
    finish(gpu)
    assert own.query()
    assert not other.query()
    other.synchronize()


@pytest.mark.parametrize("graphs", [True, False])
def test_memory_that_is_taken_aside_does_not_count(graphs: bool, gpu: torch.device) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(gpu)
    memory = TrainingMemory(gpu, graphs=graphs)
    before, size = memory.peak, 2**28
    with memory.aside():
        torch.empty(2 * size, dtype=torch.uint8, device=gpu)
    assert memory.peak < before + size
    torch.empty(size, dtype=torch.uint8, device=gpu)
    assert before + size <= memory.peak + 2**21 < before + 2 * size
