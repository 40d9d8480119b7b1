"""An exported model is a plain one: its library's own where it has one, the members' average where they are apart."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from resist_hvd.comm.world import World
from resist_hvd.data.source import Shard
from resist_hvd.settings.model import ModelSettings
from resist_hvd.tasks.classification import Classification
from resist_hvd.trained.model import load
from resist_hvd.training.evaluate import evaluate
from resist_hvd.training.export import export
from resist_hvd.training.run import Run

from . import tiny

# Each rank reads the model by itself. That any number of ranks writes the same one is tested with evaluation.
pytestmark = pytest.mark.world_sizes(2)

OPTIONS = {"patch_size": 4, "embed_dim": 12, "depth": 4, "num_heads": 3}
RESNET = ModelSettings(name="torchvision/resnet18", partition="all", zero_init_residual=False)
VIT = ModelSettings(name="timm/vit_tiny_patch16_224", options=OPTIONS, zero_init_residual=False)
MODELS = [pytest.param(tiny.MODEL, id="preact"), pytest.param(RESNET, id="torchvision"), pytest.param(VIT, id="timm")]


def exported(world: World, folder: Path, **changes: Any) -> Run:
    """A run after its first round, whose model is in a folder."""
    run = tiny.make_run(tiny.settings(world, **changes), world, folder)
    tiny.train_on(run, rounds=1)
    export(folder, run.method, run.source, run.task, world, run.autocast)
    world.barrier()
    return run


def fresh(model: ModelSettings) -> nn.Module | None:
    """The library's own network, as whoever has nothing of this project makes it."""
    if model is RESNET:
        return torchvision.models.resnet18(num_classes=tiny.CLASSES)
    if model is VIT:
        return timm.create_model("vit_tiny_patch16_224", num_classes=tiny.CLASSES, img_size=8, **OPTIONS)
    return None


@pytest.mark.parametrize("model", MODELS)
def test_it_computes_what_evaluation_finds(model: ModelSettings, world: World, folder: Path) -> None:
    run = exported(world, folder, model=model)
    found = evaluate(run.method, run.source, run.task, world, run.autocast)
    trained = load(folder)
    assert not trained.model.training
    assert trained.classes == run.source.spec.classes
    assert trained.preprocess == run.source.spec.preprocess
    batches = list(run.source.test(Shard(rank=0, size=1)))
    images, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    with torch.no_grad():
        scores = trained.model(images)
    assert 100 * (scores.argmax(dim=1) == labels).double().mean().item() == pytest.approx(found.accuracy)
    assert functional.cross_entropy(scores, labels).item() == pytest.approx(found.loss, rel=1e-4)
    if (own := fresh(model)) is not None:
        own.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        with torch.no_grad():
            torch.testing.assert_close(own.eval()(images), scores, rtol=0, atol=1e-5)
        assert type(trained.model) is type(own)
        assert trained.model.state_dict().keys() == own.state_dict().keys()


@pytest.mark.parametrize("model", MODELS)
def test_an_ensemble_is_the_average_of_its_members(model: ModelSettings, world: World, folder: Path) -> None:
    run = exported(world, folder, model=model, method="ensemble")
    found = evaluate(run.method, run.source, run.task, world, run.autocast)
    trained = load(folder)
    metric = Classification().metric()
    with torch.no_grad():
        for images, labels in run.source.test(Shard(rank=0, size=1)):
            metric.update(trained.model(images), labels)
    assert metric.compute()["accuracy"] == pytest.approx(found.accuracy)
    assert metric.compute()["loss"] == pytest.approx(found.loss, rel=1e-4)


def test_a_model_of_an_earlier_version_is_used_as_far_as_it_tells(world: World, folder: Path) -> None:
    run = exported(world, folder)
    if world.is_first:
        path = folder / "model.json"
        said = json.loads(path.read_text())
        said["architecture"] = said.pop("network")
        for later in ("channels", "test_resize"):
            said.pop(later)
        said["architecture"].pop("family")
        path.write_text(json.dumps(said))
    world.barrier()
    trained = load(folder)
    assert trained.preprocess == run.source.spec.preprocess
    assert trained.classes == run.source.spec.classes
