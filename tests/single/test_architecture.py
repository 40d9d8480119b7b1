"""Networks by their numbers: the paper's, the authors' to the parameter, and what is refused."""

import json
from typing import Any

import pytest
import torch

from resist_hvd.nets.architecture import Architecture
from resist_hvd.nets.norms import Norm
from resist_hvd.nets.parts import Network
from resist_hvd.nets.preact_resnet import network
from resist_hvd.nets.subnet import SubNet
from resist_hvd.settings.model import ModelSettings


def parts_of(settings: ModelSettings, *, classes: int = 10, image_size: int = 32) -> Network:
    return network(Architecture.of(settings, channels=3, classes=classes), image_size=image_size)


def test_the_authors_cifar_network_to_the_parameter() -> None:
    parts = parts_of(ModelSettings(final_norm=False), classes=100)
    subnet = SubNet(parts, parts.deck_sizes, device=torch.device("cpu"))
    assert parts.parameters == subnet.parameters_flat.numel() == 41_396_900
    assert [slot.numel() for slot in subnet.slots] == [1_180_672] * 22
    assert subnet.trunk.numel() == 15_422_116


@pytest.mark.parametrize(("depth", "blocks"), [(50, 5), (101, 22), (152, 35), (200, 49)])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_the_third_section_but_its_strided_block_is_dealt_out(depth: int, blocks: int, kind: str) -> None:
    settings = ModelSettings(name=f"preact_resnet{depth}", block=kind)  # type: ignore[arg-type]
    assert Architecture.of(settings, channels=3, classes=10).decks == (0, 0, blocks, 0)


def test_all_blocks_that_are_not_strided_can_be_dealt_out() -> None:
    settings = ModelSettings(sections="2,3,4,2", partition="all")
    assert Architecture.of(settings, channels=3, classes=10).decks == (2, 2, 3, 1)


@pytest.mark.parametrize(("depth", "elsewhere"), [(50, 25_503_912), (101, 44_443_816)])
def test_imagenets_bottleneck_networks_have_the_usual_convolutions(depth: int, elsewhere: int) -> None:
    # torchvision's ResNet-50 and 101 have 25,557,032 and 44,549,160 parameters, of which 53,120 and 105,344 in norms.
    settings = ModelSettings(name=f"preact_resnet{depth}", block="bottleneck", stem="imagenet")
    parts = parts_of(settings, classes=1000)
    norms = [layer for part in parts.modules for layer in part.modules() if isinstance(layer, Norm)]
    assert parts.parameters - sum(p.numel() for norm in norms for p in norm.parameters()) == elsewhere


@pytest.mark.parametrize(("size", "stem", "side"), [(32, "cifar", 4), (224, "imagenet", 7)])
def test_the_last_section_sees_images_at_an_eighth_or_a_thirty_second(size: int, stem: Any, side: int) -> None:
    *_, last, scores = parts_of(ModelSettings(sections="1,1,2,1", stem=stem), image_size=size).outputs
    assert (last.shape, scores.shape) == ((2, 512, side, side), (2, 10))


def test_json_brings_an_architecture_back() -> None:
    settings = ModelSettings(sections="1,2,3", block="bottleneck", width_factor=0.5, final_norm=False, partition="all")
    architecture = Architecture.of(settings, channels=1, classes=7)
    assert Architecture.from_json(json.loads(json.dumps(architecture.to_json()))) == architecture


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "resnet18"}, "model.name is 'resnet18'; give one of preact_resnet50"),
        ({"sections": "1,1,x"}, "model.sections is '1,1,x'; give numbers of blocks with commas"),
        ({"sections": "1,1"}, "give three numbers of blocks or more"),
        ({"sections": "1,0,3,1"}, "give three numbers of blocks or more"),
        ({"sections": ""}, "model.sections is ''; give numbers of blocks with commas"),
        ({"width_factor": 0.001}, "model.width_factor is 0.001; give one that leaves a channel"),
        ({"width_factor": 0.0}, "model.width_factor is 0.0; give one that leaves a channel"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_to_give(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ModelSettings(**wrong)  # type: ignore[arg-type]
