"""Networks by their settings, and again by the description that an exported model has."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from resist_hvd import nets
from resist_hvd.errors import UserError
from resist_hvd.nets import families
from resist_hvd.nets.parts import shapes
from resist_hvd.settings.model import ModelSettings

SIZES = {"channels": 1, "image_size": 32, "classes": 5}
VIT = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
PREACT = ModelSettings(sections="1,1,4,1", width_factor=1 / 16, partition="all")
FOREIGN = ModelSettings(name="torchvision/resnet18", options={"width_per_group": 64}, partition="all")
TIMM = pytest.param(
    ModelSettings(name="timm/vit_tiny_patch16_224", options=VIT),
    marks=pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed"),
)


@pytest.mark.parametrize(
    "settings", [PREACT, FOREIGN, TIMM, ModelSettings(parts="mine.py:parts", options={"width": 4})]
)
def test_a_description_is_of_the_same_network(
    settings: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine.py").write_text(CODE)
    network = families.chosen(settings, **SIZES)
    assert network.example is not None
    assert list(network.example.shape) == [2, 1, 32, 32]
    for chosen in (network, network.shallower([1] * len(network.decks))):
        again = families.make(json.loads(json.dumps(chosen.description)))
        assert again.description == chosen.description
        assert again.deck_sizes == chosen.deck_sizes
        assert [part.name for part in again.parts] == [part.name for part in chosen.parts]
        assert list(map(shapes, again.modules)) == list(map(shapes, chosen.modules))


CODE = """
from torch import nn
from resist_hvd.nets import Norm, Part

def parts(channels, image_size, classes, width):
    return [
        Part("stem", lambda: nn.Conv2d(channels, width, 1)),
        *(Part(f"norms.{n}", lambda: Norm(width), deck="norms") for n in range(3)),
        Part("head", lambda: nn.Sequential(nn.Flatten(), nn.Linear(width * image_size**2, classes))),
    ]
"""


def test_networks_under_public_names(tmp_path: Path) -> None:
    network = nets.torchvision("resnet18", **SIZES)
    tensors = {
        part.prefixed(name): torch.ones(shape)
        for part, module in zip(network.parts, network.modules, strict=True)
        for name, shape in shapes(module).items()
    }
    save_file(tensors, tmp_path / "weights")
    part = nets.begun_with(network, tmp_path / "weights").blocks[0]
    module = part.make()
    assert part.initialise is not None
    part.initialise(module, 1)
    assert all(bool((parameter == 1).all()) for parameter in module.parameters())
    for name in nets.__all__:
        if name != "timm":
            assert callable(getattr(nets, name)), name


def test_settings_say_how_blocks_begin_and_which_are_dealt() -> None:
    for zero in (False, True):
        settings = ModelSettings(name="torchvision/resnet18", zero_init_residual=zero)
        (part,) = families.chosen(settings, **SIZES).blocks
        module = part.make()
        assert part.initialise is not None
        part.initialise(module, 1)
        assert zero != bool(module.get_parameter("bn2.weight").any())
    assert families.chosen(FOREIGN, **SIZES).deck_sizes == (2, 1, 1, 1)


def test_weights_are_those_of_a_file(tmp_path: Path) -> None:
    wanted = families.chosen(PREACT, **SIZES)
    tensors = {
        part.prefixed(name): torch.ones(shape)
        for part, module in zip(wanted.parts, wanted.modules, strict=True)
        for name, shape in shapes(module).items()
    }
    save_file(tensors, tmp_path / "weights")
    network = families.chosen(replace(PREACT, weights=tmp_path / "weights"), **SIZES)
    assert network.remarks == ()
    assert network.description == wanted.description
    block = network.blocks[1]
    module = block.make()
    assert block.initialise is not None
    block.initialise(module, 1)
    assert all(bool((parameter == 1).all()) for parameter in module.parameters())


LIBRARYS = {"family": "torchvision", "name": "resnet18", **SIZES, "options": {}, "partition": "all"}
OURS = families.chosen(PREACT, **SIZES).description


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "no family"),
        ({**OURS, "family": "resnet"}, "no family"),
        ({**OURS, "family": ["timm"]}, "no family"),
        ({**OURS, "depths": 3}, "depths"),
        ({**OURS, "depths": [1, 1, 4, True]}, "depths"),
        ({**OURS, "depths": [1, 0, 4, 1]}, "depths"),
        ({**OURS, "sections": [1, 1, 10**7]}, "10,000,002 blocks"),
        ({**OURS, "sections": [1, 1, 10**9]}, "sections is 1000000000: .*larger than any"),
        ({**OURS, "width": 10**30}, "width is 10{30}: .*larger than any"),
        ({**OURS, "image_size": "32"}, "image_size is '32'"),
        ({**LIBRARYS, "classes": True}, "classes is 'True'"),
        ({**LIBRARYS, "channels": 0}, "channels is '0'"),
        ({**LIBRARYS, "image_size": 10**9}, "larger than any"),
        ({**LIBRARYS, "name": 18}, "name is '18', no text"),
        ({**LIBRARYS, "options": [1]}, "options"),
        ({**LIBRARYS, "options": {"width_per_group": 1e30}}, "larger than any"),
        ({**LIBRARYS, "partition": "section4"}, "partition is 'section4'"),
        ({**LIBRARYS, "dropout": 0.1}, "nothing else"),
        ({name: value for name, value in LIBRARYS.items() if name != "options"}, "options"),
        ({"family": "parts", **SIZES, "options": {}, "parts": None}, "parts is 'None', no text"),
    ],
)
def test_descriptions_of_something_else(said: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        families.make(said)


def test_networks_that_a_library_does_not_have() -> None:
    with pytest.raises(UserError, match="'resnet17'"):
        families.make({**LIBRARYS, "name": "resnet17"})
