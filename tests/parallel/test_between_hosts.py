"""Between hosts blocks and the trunk travel in another order, in chunks, and train the same network."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from resist_hvd.comm.blocks import WINDOW
from resist_hvd.comm.world import World
from resist_hvd.training.loop import train

from . import tiny


@pytest.mark.parametrize("min_blocks", [0, 3])
def test_rounds_between_hosts_are_those_on_one_to_the_bit(min_blocks: int, world: World, folder: Path) -> None:
    def trained(name: str, window: int | None) -> Tensor:
        (folder / name).mkdir(exist_ok=True)
        run = tiny.make_run(tiny.settings(world, min_blocks=min_blocks), world, folder / name)
        run.method.transport._window = window
        assert run.method.transport.between_hosts == (window is not None)
        train(run, tiny.Watching(run, lambda _: None))
        return run.method.subnet.parameters_flat

    assert torch.equal(trained("between", WINDOW), trained("on-one", None))
