"""`bench step`: what it is asked to measure, and the batch of noise that no reader stands before."""

from pathlib import Path
from typing import Any

import pytest
import torch

from resist_hvd import bench
from resist_hvd.benchmarks.noise import NoiseSource
from resist_hvd.benchmarks.step import StepSettings
from resist_hvd.benchmarks.table import show
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings
from resist_hvd.settings.reading import parse


def parsed(*flags: str) -> StepSettings:
    _, settings = bench.parse(["step", *flags])
    assert isinstance(settings, StepSettings)
    return settings


def test_a_recipe_is_measured_as_it_is_trained() -> None:
    recipe = parse(["--recipe", "imagenet-resnet50"])
    settings = parsed("--recipe", "imagenet-resnet50", "--image_size", "224")
    for name in ("model", "data", "optim", "min_blocks", "precision", "compile", "seed"):
        assert getattr(settings, name) == getattr(recipe, name)
    assert (settings.image_size, settings.classes, settings.channels) == (224, 1000, 3)
    other = parsed("--recipe=imagenet-resnet50", "--image_size=64", "--data.batch_size=8", "--precision=fp32")
    assert (other.image_size, other.data.batch_size, other.precision) == (64, 8, "fp32")
    assert other.model == recipe.model
    assert parsed("--recipe=imagenet-resnet50", "--model.name=preact_resnet101").model.counts == (3, 4, 23, 3)


@pytest.mark.parametrize("name", ["sync", "step", "compare"])
def test_every_benchmark_begins_with_a_recipe(name: str) -> None:
    recipe = parse(["--recipe=cifar10-resnet101"])
    settings = bench.parse([name, "--recipe=cifar10-resnet101"])[1]
    assert (settings.model, settings.min_blocks) == (recipe.model, recipe.min_blocks)


def test_a_network_that_is_named_is_meant_whole() -> None:
    assert parsed().model.counts == (1, 1, 13, 1)
    named = parsed("--model.name", "preact_resnet50").model
    assert (named.counts, named.width_factor) == ((3, 4, 6, 3), 1.0)
    thin = parsed("--model.name", "preact_resnet50", "--model.sections", "1,1,2", "--model.width_factor", "0.5").model
    assert (thin.counts, thin.width_factor) == ((1, 1, 2), 0.5)


@pytest.mark.parametrize("name", ["sync", "step", "compare", "loader", "codec"])
def test_every_benchmark_takes_a_device(name: str) -> None:
    root = ["--data.root=imagenet"] if name == "loader" else []
    for device in ("auto", "cpu", "cuda"):
        assert bench.parse([name, *root, f"--device={device}"])[1].device == device


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        (["--image_size=0"], ("--image_size", "0", "1 or more")),
        (["--classes=1"], ("--classes", "2 or more")),
        (["--repeats=0"], ("--repeats", "1 or more")),
        (["--precision=fp16"], ("--precision", "fp16", "bf16")),
        (["--recipe=none"], ("recipe", "none", "imagenet-resnet50")),
    ],
)
def test_settings_that_are_wrong(flags: list[str], facts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        parsed(*flags)
    assert all(fact in str(caught.value) for fact in facts)


@pytest.mark.parametrize(("image_type", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_of_noise_is_as_a_loader_s(image_type: Any, dtype: torch.dtype, channels: int) -> None:
    settings = DataSettings(name="imagenet", root=Path("none"), batch_size=6, image_type=image_type)

    def make() -> NoiseSource:
        return NoiseSource(settings, image_size=16, channels=channels, classes=5, seed=3, device=torch.device("cpu"))

    source = make()
    images, labels = next(source.train())
    assert (images.shape, images.dtype) == ((6, channels, 16, 16), dtype)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64
    assert set(labels.tolist()) <= set(range(5))
    assert next(source.train())[0] is images
    assert torch.equal(next(make().train())[0], images)


def test_images_a_second_stand_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    show("A title", {"one": [0.1, 0.3, 0.2], "other": [0.05, 0.05, 0.05]}, images=100)
    said = capsys.readouterr().out
    assert "images/s" in said
    assert [line.split("│")[5].strip() for line in said.splitlines() if "ot" in line or "one" in line] == [
        "500",
        "2,000",
    ]
    show("A title", {"one": [0.1]})
    assert "images/s" not in capsys.readouterr().out
