"""Networks whose head finds boxes: of which families, described and made again, begun with a classifier's weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from resist_hvd.errors import UserError
from resist_hvd.nets import families, saved
from resist_hvd.nets.norms import norms_of
from resist_hvd.nets.parts import Network
from resist_hvd.nets.subnet import SubNet
from resist_hvd.settings.model import ModelSettings

CLASSES, ANCHORS = 4, 3
CPU = torch.device("cpu")


def detector(**settings: Any) -> Network:
    return families.chosen(ModelSettings(**settings), channels=3, image_size=64, classes=CLASSES, anchors=ANCHORS)


def whole(network: Network, seed: int = 1) -> SubNet:
    made = SubNet(network, network.deck_sizes, device=CPU)
    made.initialise(seed, range(len(network.blocks)))
    return made


PREACT = {"sections": "1,1,4,1", "width_factor": 0.125, "stem": "imagenet"}


@pytest.mark.parametrize(
    ("settings", "places", "dealt"),
    [
        (PREACT, 2, 3),
        ({**PREACT, "sections": "1,1,4"}, 4, 3),
        ({**PREACT, "sections": "1,1,4", "final_norm": False}, 4, 3),
        ({"name": "torchvision/resnet18"}, 2, 1),
        ({"name": "torchvision/resnet50"}, 2, 5),
    ],
)
def test_it_has_predictors_at_each_place_and_the_same_blocks_are_dealt(
    settings: dict[str, Any], places: int, dealt: int
) -> None:
    network = detector(**settings)
    assert network.outputs[-1].shape == (2, ANCHORS * (5 + CLASSES), places, places)
    assert len(network.blocks) == dealt
    assert [part.name for part in network.blocks] == [
        part.name for part in families.chosen(ModelSettings(**settings), channels=3, image_size=64, classes=2).blocks
    ]
    has_norm = settings.get("final_norm", "name" not in settings)
    assert bool(norms_of(network.modules[-1])) == has_norm
    again = families.make(dict(network.description) | {"image_size": 64})
    assert saved.shapes_of(again) == saved.shapes_of(network)
    assert saved.library_model(network) is None


def test_at_first_each_box_is_its_anchors() -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = whole(detector(**PREACT))(images)
    numbers = found.view(2, ANCHORS, 5 + CLASSES, 2, 2)
    assert numbers[:, :, 4].sigmoid().max() < 0.05
    numbers[:, :, 4] = 0
    assert numbers.abs().max() < 1


def test_only_a_map_of_the_image_has_boxes() -> None:
    with pytest.raises(UserError, match="needs a map of the image"):
        families.chosen(
            ModelSettings(
                name="timm/vit_tiny_patch16_224", options={"patch_size": 16, "embed_dim": 24, "num_heads": 3}
            ),
            channels=3,
            image_size=64,
            classes=CLASSES,
            anchors=ANCHORS,
        )


@pytest.mark.parametrize("anchors", [0, -1, "five", 1e9])
def test_a_damaged_description_is_refused(anchors: object) -> None:
    said = dict(detector(**PREACT).description) | {"anchors": anchors, "image_size": 64}
    with pytest.raises(ValueError, match="anchors are"):
        families.make(said)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_it_begins_with_the_weights_of_torchvisions_classifier_and_a_head_of_its_own(
    ending: str, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    classifier = torchvision.models.resnet18(num_classes=7)
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save(classifier.state_dict(), path)
    else:
        save_file(classifier.state_dict(), path)
    network = detector(name="torchvision/resnet18", weights=path)
    assert any("detector.weight begins anew" in remark for remark in network.remarks)
    made = whole(network)
    theirs = classifier.state_dict()
    for part, module in zip(made.parts, made.layers, strict=True):
        for name, parameter in module.named_parameters():
            if "detector" not in name:
                torch.testing.assert_close(parameter, theirs[part.prefixed(name)], rtol=0, atol=0)
    other = tmp_path / "other.safetensors"
    save_file({name: tensor for name, tensor in theirs.items() if not name.startswith("layer3")}, other)
    with pytest.raises(UserError, match="of another network"):
        detector(name="torchvision/resnet18", weights=other)
