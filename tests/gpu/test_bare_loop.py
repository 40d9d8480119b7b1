"""The bare loop that ours is measured against does the same work when it is replayed as a CUDA graph."""

import copy
from typing import Any

import pytest
import torch

from resist_hvd.benchmarks.bare import BareLoop, GraphedLoop
from resist_hvd.benchmarks.noise import NoiseSource
from resist_hvd.config import Settings
from resist_hvd.data.settings import DataSettings
from resist_hvd.models import Architecture, ModelSettings, ResNet

STEPS = 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_replayed_step_is_the_step(precision: Any, gpu: torch.device) -> None:
    settings = Settings(precision=precision, data=DataSettings(batch_size=16), model=ModelSettings(sections="1,1,2"))
    torch.manual_seed(1)
    one = ResNet(Architecture.of(settings.model, channels=3, classes=10)).to(gpu)
    other, first = copy.deepcopy(one), torch.cat([p.detach().flatten().clone() for p in one.parameters()])
    source = NoiseSource(settings.data, image_size=32, channels=3, classes=10, seed=1, device=gpu)
    plain, graphed = BareLoop(one, source, settings, gpu), GraphedLoop(other, source, settings, gpu)
    for _ in range(STEPS):
        graphed.step()
    # It is the same batch each time, and a graph's first step makes some more before it.
    for _ in range(STEPS + GraphedLoop.WARM_UP):
        plain.step()
    ended, replayed = (torch.cat([p.detach().flatten() for p in network.parameters()]) for network in (one, other))
    assert (replayed - ended).norm() < 0.05 * (ended - first).norm()
