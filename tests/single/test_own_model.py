"""The example of a network of one's own is torchvision's ConvNeXt, which takes its tensors."""

from pathlib import Path

import pytest
import torch
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from resist_hvd.nets import users

ROOT = Path(__file__).parents[2]


def test_the_example_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = {"width": 8, "depths": [1, 2, 3, 1]}
    network = users.network("examples/own_model.py:parts", channels=3, image_size=32, classes=5, options=options)
    assert network.deck_sizes == (3,)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = ConvNeXt(
            [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 32, 2), CNBlockConfig(32, 64, 3), CNBlockConfig(64, None, 1)],
            num_classes=5,
            layer_scale=0.5,
        ).eval()
    weights, exported = model.state_dict(), {}
    x = images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    for part in network.parts:
        module = part.make().eval()
        own = {name: weights[part.prefixed(name)] for name in module.state_dict()}
        module.load_state_dict(own)
        exported |= {part.prefixed(name): tensor for name, tensor in own.items()}
        x = module(x)
    assert torch.equal(x, model(images))
    model.load_state_dict(exported, strict=True)


def test_the_example_is_short() -> None:
    assert len((ROOT / "examples" / "own_model.py").read_text().splitlines()) < 80
