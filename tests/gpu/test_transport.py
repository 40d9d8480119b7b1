"""Tensors in GPU memory that travel between ranks, on every way there is."""

import pytest
from gpu_check import looking
from gpu_check.check import Check


def test_horovod_waits_for_what_the_gpu_is_still_to_write(check: Check) -> None:
    looking.horovod(check)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("way", ["nccl", "host", "bound", "uneven"])
def test_what_ranks_move_arrives(way: str, ranks: int, check: Check) -> None:
    looking.travel(check, ranks, way)
