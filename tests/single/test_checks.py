"""Settings that leave nothing to learn, to normalise or to deal out are found before the first round."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from resist_hvd.data.source import DataSpec
from resist_hvd.errors import UserError
from resist_hvd.nets.families import chosen
from resist_hvd.nets.parts import Network, Part
from resist_hvd.protocol.rule import Rule
from resist_hvd.settings.data import DataSettings
from resist_hvd.settings.model import ModelSettings
from resist_hvd.settings.run import Settings
from resist_hvd.training.checks import fewest_places, refuse_degenerate, refuse_graphs_without_gpu, remarks
from resist_hvd.training.run import Run

MODEL = ModelSettings(sections="1,1,9,1", width_factor=1 / 8)


def spec(image_size: int = 8, classes: int = 4, train_size: int = 100) -> DataSpec:
    names = tuple(f"class {number}" for number in range(classes))
    some = (0.0, 0.0, 0.0)
    return DataSpec(
        name="noise",
        classes=names,
        channels=3,
        image_size=image_size,
        train_size=train_size,
        test_size=10,
        mean=some,
        std=some,
    )


def parts_of(model: ModelSettings, data: DataSpec) -> Network:
    return chosen(model, channels=data.channels, image_size=data.image_size, classes=len(data.classes))


def refuse(data: DataSpec, model: ModelSettings = MODEL, **settings: Any) -> None:
    refuse_degenerate(Settings(data=DataSettings(**settings)), parts_of(model, data), data)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("sections", ["1,1,1", "1,1,1,1,1"])
@pytest.mark.parametrize("image_size", [1, 7, 8, 9, 33])
def test_a_norm_sees_as_few_places_as_the_last_section_has(stem: Any, sections: str, image_size: int) -> None:
    parts = parts_of(ModelSettings(sections=sections, width_factor=1 / 64, stem=stem), spec(image_size))
    side = -(-image_size // 2 ** (sections.count(",") + (2 if stem == "imagenet" else 0)))
    assert fewest_places(parts) == min(side**2, 2)


def test_a_network_without_batch_norms_takes_one_value_a_channel() -> None:
    linear = Network(
        (Part("", lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 2))),), torch.empty(2, 3, 1, 1).to("meta")
    )
    refuse_degenerate(Settings(data=DataSettings(batch_size=1, calibration_images=1)), linear, spec(1))


def test_graphs_are_refused_on_a_cpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    with pytest.raises(UserError, match="--cuda_graphs needs a GPU") as caught:
        refuse_graphs_without_gpu(Settings(cuda_graphs=True), cpu)
    assert caught.value.everywhere
    refuse_graphs_without_gpu(Settings(cuda_graphs=True), gpu)
    refuse_graphs_without_gpu(Settings(), cpu)


def test_one_value_a_channel_is_refused_with_its_numbers() -> None:
    with pytest.raises(UserError, match=r"8 x 8 pixels.*--data.batch_size is 1\b") as caught:
        refuse(spec(), batch_size=1)
    assert caught.value.everywhere
    with pytest.raises(UserError, match=r"--data.calibration_images is 1\b"):
        refuse(spec(), calibration_images=1)
    with pytest.raises(UserError, match=r"16 x 16 pixels.*--data.batch_size is 1\b"):
        refuse(spec(16), replace(MODEL, stem="imagenet"), batch_size=1)


def test_two_values_a_channel_are_enough() -> None:
    refuse(spec(), batch_size=2, calibration_images=2)
    refuse(spec(9), batch_size=1, calibration_images=1)
    refuse(spec(), replace(MODEL, sections="1,1,9"), batch_size=1)


def test_a_single_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"noise has 1 class\b"):
        refuse(spec(classes=1))
    refuse(spec(classes=2))


def remark(workers: int = 4, *, model: ModelSettings = MODEL, image_size: int = 8, **changes: Any) -> str:
    """What is said of a run of 100 epochs, which are 10,000 samples."""
    settings = Settings(
        **{"model": model, "epochs": 100, "min_blocks": 0, "data": DataSettings(batch_size=5), **changes}
    )
    data = spec(image_size)
    parts = parts_of(model, data)
    method = SimpleNamespace(
        setup=SimpleNamespace(network=parts), network=parts, rule=Rule(parts.deck_sizes, workers, settings.min_blocks)
    )
    world, source = SimpleNamespace(size=workers), SimpleNamespace(spec=data)
    run = Run(
        settings=settings, world=cast(Any, world), source=cast(Any, source), method=cast(Any, method), folder=Path()
    )
    return " ".join(remarks(run))


def test_resist_that_deals_nothing_out_is_told_and_what_changes_it() -> None:
    shallow = replace(MODEL, sections="1,1,1,1")
    for model in (shallow, replace(MODEL, sections="1,1,2,1"), replace(shallow, partition="all")):
        said = remark(model=model)
        assert str(model.sections) in said
        assert "--model.sections" in said
    said = remark(model=ModelSettings(name="torchvision/resnet18"), image_size=32)
    assert "resnet18 has 1 block" in said
    assert "--model.sections" not in said
    assert "--model.partition all" in said
    alone = remark(1)
    assert "all 8 blocks" in alone
    assert "launch/run -np 4" in alone
    shared = remark(min_blocks=8)
    assert "4 workers" in shared
    assert "all 8 blocks (--min_blocks 8)" in shared
    assert "below 8" in shared
    everything = replace(MODEL, sections="4,4,4,4", partition="all")
    assert "all 13 blocks (--min_blocks 5)" in remark(model=everything, min_blocks=5)


def test_a_warm_up_as_long_as_the_run_is_told() -> None:
    said = remark(warmup_epochs=100)
    assert "10,000 samples (--warmup_epochs 100), and the run 10,000" in said
    # Rounds of 50 iterations of 20 images: a thousand samples each.
    assert "--max_rounds" in remark(warmup_epochs=20, max_rounds=2)
    assert remark(warmup_epochs=20, max_rounds=3) == ""


def test_resist_that_is_some_is_not_remarked_on() -> None:
    for min_blocks in (0, 5, 7):
        assert remark(min_blocks=min_blocks) == ""
    assert remark(model=replace(MODEL, sections="4,4,4,4", partition="all"), min_blocks=3) == ""
    for method in ("local-sgd", "data-parallel", "ensemble", "federated-dropout"):
        assert remark(1, method=method) == ""


def test_a_stem_for_small_images_is_told_where_images_are_large() -> None:
    said = remark(image_size=224)
    assert "224 x 224" in said
    assert "--model.stem imagenet" in said
    assert remark(image_size=64) == ""
    assert remark(image_size=224, model=replace(MODEL, stem="imagenet")) == ""
