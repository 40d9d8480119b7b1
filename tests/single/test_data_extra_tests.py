"""Further test sets: ImageNetV2's folders, numbered in the order of numbers, and what is said where they are wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resist_hvd.data import Shard, load
from resist_hvd.data.folders import ImageIndex
from resist_hvd.data.tree import find_extra_tests
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataName, DataSettings

CLASSES = tuple(f"n{number:08d}" for number in range(12))
NAMES = ("matched-frequency", "threshold0.7", "top-images")
"""The paper's Table 3 calls them MF, T-0.7 and TI."""


def write_image(path: Path, brightness: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), brightness, dtype=np.uint8)).save(path)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """ImageNetV2's three, of 12 classes with 2 images each, each image as bright as its class's number tells."""
    for name in NAMES:
        for number in range(12):
            for image in ("b", "a"):
                write_image(
                    tmp_path / "v2" / f"imagenetv2-{name}-format-val" / str(number) / f"{image}.png", 20 * number
                )
    return tmp_path / "v2"


def labels_of(images: ImageIndex) -> dict[str, int]:
    """The label of each class folder."""
    return {images.path(image).parent.name: int(label) for image, label in enumerate(images.labels)}


def found_in(place: Path, classes: tuple[str, ...] = CLASSES) -> dict[str, ImageIndex]:
    return find_extra_tests(place, classes)[0]


def test_folders_are_numbers_not_text(v2: Path) -> None:
    tests = found_in(v2)
    assert list(tests) == list(NAMES)
    for name, images in tests.items():
        assert labels_of(images) == {str(number): number for number in range(12)}
        assert images.labels.tolist() == [number for number in range(12) for _ in range(2)]
        assert images.folder == v2 / f"imagenetv2-{name}-format-val"


def test_one_test_set_may_be_named_itself(v2: Path) -> None:
    ((name, images),) = found_in(v2 / "imagenetv2-top-images-format-val").items()
    assert (name, labels_of(images)["10"]) == ("top-images", 10)


def test_classes_may_be_named_and_be_few(tmp_path: Path) -> None:
    write_image(tmp_path / "sketches" / CLASSES[7] / "1.png", 0)
    write_image(tmp_path / "sketches" / CLASSES[2] / "1.png", 0)
    write_image(tmp_path / "sketches" / CLASSES[2] / "2.png", 0)
    ((name, images),) = found_in(tmp_path).items()
    assert (name, labels_of(images)) == ("sketches", {CLASSES[2]: 2, CLASSES[7]: 7})


@pytest.mark.parametrize("count", [2, 11, 12])
def test_training_classes_that_are_numbers_are_meant_by_their_names(count: int, tmp_path: Path) -> None:
    classes = tuple(sorted(map(str, range(count))))
    for name in classes:
        write_image(tmp_path / "mine" / name / "1.png", 0)
    assert labels_of(found_in(tmp_path / "mine", classes)["mine"]) == {
        name: label for label, name in enumerate(classes)
    }


def test_some_of_the_numbers_are_enough_where_they_are_names(tmp_path: Path) -> None:
    write_image(tmp_path / "mine" / "10" / "1.png", 0)
    write_image(tmp_path / "mine" / "7" / "1.png", 0)
    assert labels_of(found_in(tmp_path, ("1", "10", "7"))["mine"]) == {"10": 1, "7": 2}
    write_image(tmp_path / "mine" / "2" / "1.png", 0)
    with pytest.raises(UserError, match="folder '2', which is no class of the training set"):
        find_extra_tests(tmp_path, ("1", "10", "7"))


@pytest.mark.parametrize("source_name", ["folder", "imagenet"])
def test_a_set_of_numbered_classes_is_labelled_alike_as_its_own_test_and_as_an_extra_one(
    tmp_path: Path, source_name: DataName
) -> None:
    for number in range(12):
        for half in ("train", "val"):
            write_image(tmp_path / "images" / half / str(number) / "1.png", 20 * number)
    settings = DataSettings(
        name=source_name, root=tmp_path / "images", batch_size=2, image_size=4, decode_threads=1,
        extra_tests=tmp_path / "images/val",
    )  # fmt: skip
    alone = Shard(rank=0, size=1)
    with load(settings, shard=alone, seed=1, device=torch.device("cpu")) as source:
        (extra,) = source.extra_tests
        (images, labels), (same_images, same_labels) = (*source.test(), *extra.batches(alone))
        assert labels.tolist() == same_labels.tolist() == list(range(12))
        assert torch.equal(images, same_images)


@pytest.mark.parametrize("source_name", ["folder", "imagenet"])
def test_a_source_serves_them_beside_its_own_test_set(v2: Path, tmp_path: Path, source_name: DataName) -> None:
    for name in CLASSES:
        for half in ("train", "val"):
            write_image(tmp_path / "images" / half / name / "1.png", 128)
    write_image(tmp_path / "images/train" / CLASSES[0] / "2.png", 28)
    settings = DataSettings(
        name=source_name, root=tmp_path / "images", batch_size=2, test_batch_size=5, image_size=4,
        extra_tests=v2, decode_threads=1,
    )  # fmt: skip
    with load(settings, shard=Shard(rank=0, size=2), seed=1, device=torch.device("cpu")) as source:
        assert [(test.name, test.size) for test in source.extra_tests] == [(name, 24) for name in NAMES]
        for test in source.extra_tests:
            shares = [list(test.batches(Shard(rank=rank, size=2))) for rank in range(2)]
            batches = [batch for share in shares for batch in share]
            assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == sorted(2 * list(range(12)))
            mean, std = source.spec.mean[0], source.spec.std[0]
            for images, labels in batches:
                brightness = images[:, 0, 0, 0] * std + mean
                assert torch.allclose(brightness, 20.0 * labels, atol=0.01)
            assert test.size == sum(len(labels) for _, labels in batches)


def test_without_the_setting_there_are_none(tmp_path: Path) -> None:
    source = load(DataSettings(), shard=Shard(rank=0, size=1), seed=1, device=torch.device("cpu"))
    assert source.extra_tests == ()


def check_error(place: Path, seen: str, where: Path, mend: str) -> None:
    with pytest.raises(UserError) as info:
        find_extra_tests(place, CLASSES)
    assert seen in info.value.seen
    assert info.value.where == str(where)
    assert mend in info.value.mend


MF = "imagenetv2-matched-frequency-format-val"


def remove_a_folder(v2: Path) -> Path:
    shutil.rmtree(v2 / MF / "11")
    return v2 / MF


def add_a_folder(v2: Path) -> Path:
    write_image(v2 / MF / "12" / "a.png", 0)
    write_image(v2 / MF / "12" / "b.png", 0)
    return v2 / MF


def write_a_number_twice(v2: Path) -> Path:
    shutil.copytree(v2 / MF / "3", v2 / MF / "03")
    return v2 / MF


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (
            remove_a_folder,
            "has 11 class folders from 0 to 10, where the training set's 12 classes ask for all from 0 to 11",
        ),
        (add_a_folder, "has 13 class folders from 0 to 12"),
        (write_a_number_twice, "has 13 class folders from 0 to 11"),
    ],
)
def test_numbers_that_are_not_the_classes_are_refused(v2: Path, change: Callable[[Path], Path], seen: str) -> None:
    check_error(v2, seen, change(v2), "Unpack its archive anew")


def test_missing_images_are_noticed(v2: Path) -> None:
    (v2 / MF / "10" / "a.png").unlink()
    (v2 / MF / "10" / ".hidden.png").write_bytes(b"")
    (v2 / MF / "10" / "Thumbs.db").write_bytes(b"")
    seen = "1 class folders of the test set have fewer images than they should; the first has 1 of 2"
    check_error(v2, seen, v2 / MF / "10", "Unpack the test set's archive anew")
    (v2 / MF / "10" / "b.png").unlink()
    check_error(v2, "has no image in it, but 1 file (.db 1)", v2 / MF / "10", "remove the folder")


def test_an_empty_class_by_name_is_noticed(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / CLASSES[1] / "1.png", 0)
    (tmp_path / "a" / CLASSES[3]).mkdir()
    check_error(tmp_path, "has no image in it", tmp_path / "a" / CLASSES[3], "remove the folder")


def test_a_stranger_among_the_classes_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / CLASSES[1] / "1.png", 0)
    write_image(tmp_path / "a" / "cat" / "1.png", 0)
    for place in (tmp_path / "a", tmp_path):
        check_error(place, "has a folder 'cat', which is no class", tmp_path / "a", "test sets of these classes")


def test_two_sets_of_one_name_are_refused(v2: Path) -> None:
    shutil.copytree(v2 / MF, v2 / "matched-frequency")
    check_error(v2, "Two test sets would be called 'matched-frequency'", v2, "Rename")


def test_missing_and_empty_places_are_named(tmp_path: Path) -> None:
    check_error(tmp_path / "none", "There is no such folder", tmp_path / "none", "--data.extra_tests")
    (tmp_path / "file").write_text("")
    check_error(tmp_path / "file", "This is not a folder", tmp_path / "file", "--data.extra_tests")
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "imagenetv2-top-images.tar.gz").write_bytes(b"")
    check_error(tmp_path / "downloads", "no class folders", tmp_path / "downloads", "Unpack ImageNetV2's")
    (tmp_path / "downloads" / MF).mkdir()
    check_error(tmp_path / "downloads", "has no class folders", tmp_path / "downloads" / MF, "Unpack its archive")


def test_sets_that_have_no_class_folders_refuse_the_setting() -> None:
    with pytest.raises(ValueError, match=r"--data\.extra_tests is v2, which does nothing for cifar10"):
        DataSettings(name="cifar10", extra_tests=Path("v2"))
