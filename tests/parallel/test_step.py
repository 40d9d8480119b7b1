"""`bench step` measures two loops that do the same work."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from resist_hvd.benchmarks import step
from resist_hvd.benchmarks.bare import BareLoop
from resist_hvd.benchmarks.candidates import copy_parameters
from resist_hvd.benchmarks.step import BARE, OURS, OWN, StepSettings
from resist_hvd.comm.world import World
from resist_hvd.nets.saved import Whole
from resist_hvd.settings.data import DataSettings
from resist_hvd.settings.model import ModelSettings
from resist_hvd.settings.optim import OptimSettings

from . import tiny

# Nothing is sent in these steps.
pytestmark = pytest.mark.world_sizes(1, 3)

SETTINGS = StepSettings(
    image_size=16,
    classes=10,
    min_blocks=3,
    steps=1,
    repeats=2,
    model=ModelSettings(sections="1,1,6,1", width_factor=1 / 16, zero_init_residual=False),
    data=DataSettings(batch_size=8),
)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"precision": "bf16"}, id="bfloat16"),
        pytest.param({"image_size": None, "data": DataSettings(batch_size=8, image_size=16)}, id="digits"),
    ],
)
def test_both_loops_are_measured_and_written_down(
    changes: dict[str, Any], world: World, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(SETTINGS, json=folder / "step.json", **changes)
    ratio = step.run(settings, world)
    assert ratio > 0
    if not world.is_first:
        return
    written = json.loads((folder / "step.json").read_text())
    assert (written["device"], written["ranks"], written["precision"]) == ("cpu", world.size, settings.precision)
    assert (written["batch_size"], written["image_size"], written["compile"]) == (8, 16, False)
    assert written["ratio"] == ratio
    for name in (BARE, OURS, OWN):
        first, second = written["seconds"][name]
        assert written["images_a_second"][name] == pytest.approx(8 / ((first + second) / 2))
    said = capsys.readouterr().out
    assert "images/s" in said
    assert settings.precision in said


@pytest.mark.parametrize("optim", [OptimSettings(), OptimSettings(nesterov=True, label_smoothing=0.1, clip_norm=0.5)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_loops_end_at_the_same_weights(optim: OptimSettings, precision: Any, world: World) -> None:
    optim = replace(optim, schedule="constant", lr=0.05)
    training = tiny.settings(world, precision=precision, optim=optim, min_blocks=3)
    rank, size = world.rank, world.size
    local = step.ours(training, tiny.source(training, rank=rank, size=size), world)
    ours = local.run.method.subnet
    network = Whole(ours.network.shallower(ours.depths))
    copy_parameters(ours, network)
    network.to(memory_format=torch.channels_last)
    before = ours.parameters_flat.clone()
    bare = BareLoop(network, tiny.source(training, rank=rank, size=size), training, world.device)
    for _ in range(3):
        local.step()
        bare.step()
    moved = (ours.parameters_flat - before).norm()
    theirs = torch.cat([parameter.flatten() for parameter in network.parameters()])
    mine = torch.cat([parameter.flatten() for parameter in ours.parameters()])
    owns = step.own(local.run, tiny.source(training, rank=rank, size=size), 4)
    for _ in range(3):
        owns.step()
    owned = torch.cat([parameter.flatten() for parameter in owns.net.subnet.parameters()])
    assert (owned - theirs).norm() < (0.05 if precision == "bf16" else 1e-3) * moved
    assert (theirs - mine).norm() < (0.05 if precision == "bf16" else 1e-3) * moved
