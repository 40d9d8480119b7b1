"""A run's settings: what is refused, what overrides what, and that they come back from the file they are written to."""

import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from resist_hvd.config import Settings, parse, recipe_names, to_yaml
from resist_hvd.data.settings import DataSettings
from resist_hvd.models import ModelSettings
from resist_hvd.training.optim import OptimSettings

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"local_iterations": 0}, "--local_iterations is 0; give 1 or more"),
    ({"min_blocks": -1}, "--min_blocks is -1; give 0 or more"),
    ({"warmup_epochs": -0.5}, "--warmup_epochs is -0.5; give 0 or more"),
    ({"warmup_epochs": float("nan")}, "--warmup_epochs is nan"),
    ({"warmup_epochs": float("inf")}, "--warmup_epochs is inf"),
    ({"max_rounds": 0}, "--max_rounds is 0; give 1 or more"),
    ({"seed": -1}, "--seed is -1; give 0 or more"),
    ({"evaluate_every": -1}, "--evaluate_every is -1; give 0 or more"),
    ({"checkpoint_every": -1}, "--checkpoint_every is -1; give 0 or more"),
    ({"keep_checkpoints": 0}, "--keep_checkpoints is 0; give 1 or more"),
    ({"watchdog": -1.0}, "--watchdog is -1.0; give 0 or more"),
    ({"watchdog": float("nan")}, "--watchdog is nan; give 0 or more"),
    ({"epochs": 0.0}, "--epochs is 0.0; give a number above 0"),
    ({"epochs": float("nan")}, "--epochs is nan; give a number above 0"),
    ({"epochs": float("inf")}, "--epochs is inf; give a number above 0"),
    (
        {"warmup_epochs": 1.0, "method": "local-sgd"},
        "--warmup_epochs precedes ResIST only; leave it out with --method local-sgd",
    ),
    ({"resume": True}, "--resume needs the folder of the run to go on with; give it with --output DIR"),
    (
        {"data": DataSettings(name="imagenet", root=Path("x"), image_type="bf16")},
        "--data.image_type is bf16, but --precision is fp32; give --precision bf16, too",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Settings(**changes)


def test_the_lowest_that_is_right() -> None:
    least = Settings(
        local_iterations=1,
        min_blocks=0,
        warmup_epochs=0,
        max_rounds=1,
        seed=0,
        evaluate_every=0,
        checkpoint_every=0,
        keep_checkpoints=1,
        watchdog=0,
        epochs=1e-3,
    )
    assert least.max_rounds == 1


def test_flags_override_the_file_which_overrides_the_recipe(tmp_path: Path) -> None:
    recipe = parse(["--recipe", "digits"])
    path = tmp_path / "settings.yaml"
    path.write_text("local_iterations: 7\nseed: 8\noptim:\n  lr: 0.25\ndata:\n  batch_size: 9\n")
    settings = parse(["--recipe", "digits", "--seed", "10", "--config", str(path), "--optim.momentum=0.5"])
    assert settings == replace(
        recipe,
        local_iterations=7,
        seed=10,
        optim=replace(recipe.optim, lr=0.25, momentum=0.5),
        data=replace(recipe.data, batch_size=9),
    )


def test_without_flags_it_is_the_embedded_demonstration() -> None:
    assert parse([]) == parse(["--recipe=digits"])
    assert parse([]).data.name == "digits"


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_says_what_it_is_taken_for(recipe: str, tmp_path: Path) -> None:
    text = resources.files("resist_hvd.recipes").joinpath(f"{recipe}.yaml").read_text()
    root = [] if recipe == "digits" else ["--data.root", str(tmp_path)]
    settings = parse(["--recipe", recipe, *root])
    resolved = yaml.safe_load(to_yaml(settings))
    for name, value in yaml.safe_load(text).items():
        there = resolved[name]
        if isinstance(value, dict):
            value = {key: wanted for key, wanted in value.items() if key != "root"}
            there = {key: there[key] for key in value}
        assert there == value


def test_the_recipes_of_the_issue_are_there() -> None:
    assert {
        "digits",
        "cifar10-tiny",
        "cifar10-resnet101",
        "cifar100-resnet101",
        "imagenet-resnet50",
        "imagenet-resnet101",
    } <= set(recipe_names())


@pytest.mark.parametrize("recipe", ["cifar10-resnet101", "cifar100-resnet101"])
def test_the_papers_settings(recipe: str) -> None:
    # Section 5.1 of the paper, and its supplement; S = 4.
    settings = parse(["--recipe", recipe])
    assert settings.model.counts == (3, 4, 23, 3)
    assert (settings.model.block, settings.model.width_factor, settings.model.final_norm) == ("basic", 1.0, False)
    assert (settings.local_iterations, settings.min_blocks, settings.momentum) == (50, 5, "restart")
    assert (settings.data.batch_size, settings.epochs) == (128, 160)
    optim = settings.optim
    assert (optim.momentum, optim.weight_decay, optim.schedule) == (0.9, 5e-4, "step")
    assert (optim.milestones, optim.divide_by) == ((0.5, 0.75), 10.0)


@pytest.mark.parametrize(
    ("recipe", "sections", "min_blocks"),
    [("imagenet-resnet101", (3, 4, 23, 3), 10), ("imagenet-resnet50", (3, 4, 6, 3), 3)],
)
def test_the_papers_settings_on_imagenet(recipe: str, sections: tuple[int, ...], min_blocks: int) -> None:
    # Section 5.1 of the paper; of ResNet-50 it has nothing.
    settings = parse(["--recipe", recipe, "--data.root", "somewhere"])
    assert settings.model.counts == sections
    assert (settings.model.block, settings.model.stem, settings.model.width_factor) == ("bottleneck", "imagenet", 1.0)
    assert (settings.local_iterations, settings.min_blocks, settings.momentum) == (15, min_blocks, "restart")
    assert (settings.data.name, settings.data.batch_size, settings.data.size) == ("imagenet", 256, 224)
    assert settings.data.resize_before_test == 256
    optim = settings.optim
    assert (optim.lr, optim.momentum, optim.schedule, optim.divide_by) == (0.1, 0.9, "step", 10.0)
    assert [settings.epochs * milestone for milestone in optim.milestones] == pytest.approx([30, 60])


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for settings in (
        Settings(),
        Settings(
            method="local-sgd",
            local_iterations=3,
            min_blocks=0,
            momentum="keep",
            scale_activations=False,
            epochs=0.1,
            max_rounds=9,
            seed=2**40,
            precision="bf16",
            compile=True,
            device="cpu",
            evaluate_every=1,
            checkpoint_every=2,
            keep_checkpoints=3,
            output=tmp_path / "a run: with signs #1",
            resume=True,
            model=ModelSettings(sections="1,1,5", block="bottleneck", width_factor=1 / 3, partition="all"),
            data=DataSettings(name="folder", root=tmp_path, image_size=8, crop_padding=0, flip=False),
            optim=OptimSettings(lr=1e-5, schedule="step", milestones=(0.1, 0.2, 0.3), clip_norm=1.5),
        ),
        *(parse(["--recipe", recipe]) for recipe in recipe_names()),
    ):
        path.write_text(to_yaml(settings))
        assert parse(["--config", str(path)]) == settings
