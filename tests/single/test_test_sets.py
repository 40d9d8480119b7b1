"""Test sets for a trained model: the images that training's own evaluation sees, and classes by the model's numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resist_hvd.data import DataSource, Shard, load, test_sets
from resist_hvd.data.preprocess import Preprocess
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings

from .. import photographs

CPU = torch.device("cpu")
ALONE = Shard(rank=0, size=1)
GREY = Preprocess(image_size=8, channels=1, mean=(3.0,), std=(4.0,))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs.make_root(tmp_path_factory.mktemp("photographs"), classes=2, train=2, val=4)


def settings(**changes: Any) -> DataSettings:
    return DataSettings(**{"batch_size": 2, "test_batch_size": 3, **changes})


def opened(source: DataSource, own: DataSettings, **changes: Any) -> test_sets.TestSets:
    spec = source.spec
    return test_sets.load(own, **{"classes": spec.classes, "prepare": spec.preprocess, "device": CPU, **changes})


SETS: list[dict[str, Any]] = [
    {"name": "folder", "image_size": 28},
    {"name": "imagenet", "image_size": 28, "test_resize": 41, "loader": "torchvision", "decode_threads": 1},
    {"name": "digits"},
    {"name": "digits", "image_size": 20},
]


@pytest.mark.parametrize("changes", SETS)
def test_batches_are_those_of_trainings_evaluation(changes: dict[str, Any], root: Path) -> None:
    own = settings(**changes, **({} if changes["name"] == "digits" else {"root": root}))
    with load(own, shard=ALONE, seed=1, device=CPU) as source:
        plain = DataSettings(name=own.name, root=own.root, test_batch_size=own.test_batch_size)
        (test,) = opened(source, plain).tests
        assert test.size == source.spec.test_size
        for shard in (ALONE, Shard(rank=1, size=2)):
            ours, theirs = list(test.batches(shard)), list(source.test(shard))
            assert len(ours) == len(theirs)
            for (images, labels), (expected, numbers) in zip(ours, theirs, strict=True):
                assert torch.equal(images, expected)
                assert torch.equal(labels, numbers)


def make(folder: Path, **classes: int) -> Path:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((8, 8), 20 * number, dtype=np.uint8)).save(folder / name / f"{number}.png")
    return folder


def found(root: Path, classes: str = "cat dog fox", **changes: Any) -> dict[str, list[int]]:
    """The labels of each test set."""
    own = settings(name="folder", root=root, **changes)
    sets = test_sets.load(own, classes=classes.split(), prepare=GREY, device=CPU)
    return {test.name: torch.cat([labels for _, labels in test.batches(ALONE)]).tolist() for test in sets.tests}


def test_class_folders_need_neither_a_training_half_nor_every_class(tmp_path: Path) -> None:
    make(tmp_path / "data/val", dog=2, fox=1)
    assert found(tmp_path / "data") == {"val": [1, 1, 2]}
    assert found(tmp_path / "data/val") == {"val": [1, 1, 2]}
    make(tmp_path / "several/day", cat=1)
    make(tmp_path / "several/night", fox=2)
    assert found(tmp_path / "several") == {"day": [0], "night": [2, 2]}
    assert found(tmp_path / "data", extra_tests=tmp_path / "several") == {"val": [1, 1, 2], "day": [0], "night": [2, 2]}


def test_numbers_of_folders_are_those_of_classes(tmp_path: Path) -> None:
    make(tmp_path / "imagenetv2-top-images-format-val", **{str(number): 1 for number in range(11)})
    classes = " ".join(f"n{number:02d}" for number in range(11))
    assert found(tmp_path, classes) == {"top-images": list(range(11))}


def test_classes_that_the_model_does_not_have_are_named(tmp_path: Path) -> None:
    make(tmp_path / "test", dog=1, wolf=1)
    with pytest.raises(UserError, match=r"1 of the set's 2 classes .* 3 \(cat to fox\): wolf"):
        found(tmp_path)
    with pytest.raises(UserError, match="10 of the set's 10 classes"):
        test_sets.load(settings(name="digits"), classes=["cat"], prepare=GREY, device=CPU)


def test_classes_of_a_published_set_have_the_models_numbers() -> None:
    classes = [str(number) for number in reversed(range(12))]
    (test,) = test_sets.load(settings(name="digits"), classes=classes, prepare=GREY, device=CPU).tests
    (usual,) = test_sets.load(settings(name="digits"), classes=classes[::-1], prepare=GREY, device=CPU).tests
    for (_, labels), (_, numbers) in zip(test.batches(ALONE), usual.batches(ALONE), strict=True):
        assert torch.equal(labels, 11 - numbers)


def test_a_broken_file_ends_it_or_is_left_out(tmp_path: Path) -> None:
    make(tmp_path / "test", cat=3)
    (tmp_path / "test/cat/1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no image.*1\.png.*--data\.broken_files skip"):
        found(tmp_path)
    sets = test_sets.load(
        settings(name="folder", root=tmp_path, broken_files="skip"), classes=["cat"], prepare=GREY, device=CPU
    )
    (test,) = sets.tests
    assert [len(labels) for _, labels in test.batches(ALONE)] == [2]
    assert [Path(path).name for path in sets.broken.found] == ["1.png"]
