"""Batches of images with boxes: who trains on which image, where boxes are, what becomes of files that are broken."""

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from resist_hvd import data
from resist_hvd.data import DataSource, Shard
from resist_hvd.data.broken import BrokenFiles
from resist_hvd.data.detection.batches import DetectionPlan, augmented, row_of, stretched
from resist_hvd.data.detection.source import read
from resist_hvd.data.detection.source import test_set as opened_test_set
from resist_hvd.data.files.loader import MEAN, STD
from resist_hvd.data.order import EpochOrder
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings
from resist_hvd.tasks.objects import unpacked

from ..voc_images import Devkit, make_squares, thing

TRAIN, TEST, SIDE = 24, 8, 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_squares(tmp_path_factory.mktemp("squares"), train=TRAIN, test=TEST, side=SIDE)


def source(root: Path, *, shard: Shard | None = None, **changes: Any) -> DataSource:
    chosen = DataSettings(
        **{"name": "voc", "root": root, "image_size": 32, "batch_size": 4, "test_batch_size": 3} | changes
    )
    return data.load(chosen, shard=shard or Shard(rank=0, size=1), seed=3, device=torch.device("cpu"), cores=1)


def brightest(image: Tensor, channel: int) -> list[float]:
    """The box around an image's bright pixels of a channel, as shares of its sides."""
    rows, columns = torch.nonzero(image[channel] > 170, as_tuple=True)
    height, width = image.shape[1:]
    return [
        columns.min().item() / width,
        rows.min().item() / height,
        (columns.max().item() + 1) / width,
        (rows.max().item() + 1) / height,
    ]


def pixels_of(batch: Tensor) -> Tensor:
    """Images as they were before they were normalised, in 0 to 255."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return batch * std + mean


def check_boxes(batch: tuple[Tensor, Tensor], *, within: float) -> None:
    """See that the red square is where the box of class 1 is, and the blue one where that of class 0 is."""
    objects = unpacked(batch[1])
    for image, boxes, labels in zip(pixels_of(batch[0]), objects.boxes, objects.labels, strict=True):
        assert sorted(labels.tolist()) == [0, 1]
        for box, label in zip(boxes, labels.tolist(), strict=True):
            assert brightest(image, 2 if label == 0 else 0) == pytest.approx(box.tolist(), abs=within)


def test_classes_are_found_in_the_annotations_and_boxes_are_shares_of_images(root: Path) -> None:
    with source(root) as loaded:
        assert loaded.spec.classes == ("blue", "red")
        assert (loaded.spec.train_size, loaded.spec.test_size) == (TRAIN, TEST)
        assert loaded.object_sizes is not None
        assert loaded.object_sizes.shape == (2 * TRAIN, 2)
        batches = list(loaded.test())
        assert [len(images) for images, _ in batches] == [3, 3, 2]
        for batch in batches:
            assert batch[0].shape[1:] == (3, 32, 32)
            check_boxes(batch, within=0.05)
        for batch in islice(loaded.train(), 6):
            check_boxes(batch, within=0.05)


def test_all_ranks_together_see_every_image_once_an_epoch_and_others_go_on_in_the_same_order() -> None:
    order = EpochOrder(TRAIN, 3)

    def images(size: int, samples: int) -> list[int]:
        plans = [DetectionPlan(order=order, shard=Shard(rank=rank, size=size), batch_size=4) for rank in range(size)]
        drawn = []
        for first in range(samples, 2 * TRAIN, 4 * size):
            drawn += [image for plan in plans for image in plan.batch(first)[0].tolist()]
        return drawn

    alone, together = images(1, 0), images(2, 0)
    assert alone == together
    assert Counter(together[:TRAIN]) == Counter(range(TRAIN))
    assert together[16:] == images(2, 16) == images(1, 16)


def test_batches_are_the_same_wherever_a_run_begins_and_however_many_processes_make_them(root: Path) -> None:
    flags = {"jitter": 0.2, "flip": True, "color_jitter": 0.3}
    with source(root, decode_threads=2, **flags) as whole, source(root, decode_threads=1, **flags) as late:
        first = list(islice(whole.train(), 6))
        again = list(islice(late.train(samples=12), 3))
    for (images, targets), (others, their_targets) in zip(first[3:], again, strict=True):
        torch.testing.assert_close(images, others, rtol=0, atol=0)
        torch.testing.assert_close(targets, their_targets, rtol=0, atol=0)
    with source(root) as plain:
        assert not torch.equal(next(plain.train())[0], first[0][0])


@settings(max_examples=40, deadline=None)
@given(
    drawn=st.lists(st.floats(0, 0.999), min_size=8, max_size=8),
    flip=st.booleans(),
    left=st.integers(10, 40),
    top=st.integers(5, 20),
)
def test_boxes_follow_their_objects_through_augmentation(drawn: list[float], flip: bool, left: int, top: int) -> None:
    pixels = torch.zeros(3, 60, 90, dtype=torch.uint8)
    pixels[:, top : top + 24, left : left + 30] = 255
    box = tv_tensors.BoundingBoxes(
        torch.tensor([[left, top, left + 30, top + 24]]).float(), format="XYXY", canvas_size=(60, 90)
    )
    objects = {"boxes": box, "labels": torch.tensor([1]), "difficult": torch.tensor([True])}
    chosen = DataSettings(name="voc", root=Path("x"), jitter=0.3, flip=flip)
    changed = stretched(augmented((tv_tensors.Image(pixels), objects), np.array(drawn), chosen), 96)
    row = unpacked(row_of(changed, 2)[None])
    bright = changed[0].as_subclass(Tensor).float()
    if (bright > 170).any():
        assert row.labels.tolist() == [[1, -1]]
        assert row.difficult is not None
        assert row.difficult.tolist() == [[True, False]]
        assert brightest(bright, 0) == pytest.approx(row.boxes[0, 0].tolist(), abs=0.03)


def test_an_object_that_a_window_leaves_out_is_gone() -> None:
    box = tv_tensors.BoundingBoxes(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), format="XYXY", canvas_size=(40, 40))
    objects = {"boxes": box, "labels": torch.tensor([0]), "difficult": torch.tensor([False])}
    image = tv_tensors.Image(torch.zeros(3, 40, 40, dtype=torch.uint8))
    far = np.array([0.95, 0.95, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])  # the window begins at a quarter of the image
    _, left = augmented((image, objects), far, DataSettings(name="voc", root=Path("x"), jitter=0.3))
    assert left["boxes"].shape == (0, 4)
    assert len(left["labels"]) == len(left["difficult"]) == 0


def test_difficult_objects_are_tested_on_and_not_trained_on(tmp_path: Path) -> None:
    devkit = Devkit(tmp_path)
    for which in ("trainval", "test"):
        for number in range(4):
            easy, hard = thing("cat", 1, 1, 20, 20), thing("cat", 5, 5, 30, 30, difficult=1)
            devkit.add("2007", which, f"{which}{number}", (40, 40), easy, hard)
    with source(devkit.root) as loaded:
        trained = unpacked(next(loaded.train())[1])
        tested = unpacked(next(iter(loaded.test()))[1])
    assert trained.labels.shape == (4, 1)
    assert tested.labels.shape == (3, 2)
    assert tested.difficult is not None
    assert tested.difficult.tolist() == [[False, True]] * 3


def test_images_may_be_held_out(root: Path) -> None:
    with source(root, validation=0.25) as loaded:
        assert (loaded.spec.train_size, loaded.spec.test_size) == (18, 6)
    with pytest.raises(UserError, match="holds out 0 of 24 training images"):
        source(root, validation=0.01)


def test_one_broken_file_more_moves_no_image_from_one_side_to_the_other(tmp_path: Path) -> None:
    root = make_squares(tmp_path, train=24, test=2)
    settings = DataSettings(name="voc", root=root, validation=0.25, broken_files="skip")
    before = read(settings)
    for number in (0, 7, 13):
        (root / f"VOC2007/Annotations/trainval{number:03d}.xml").unlink()
    after = read(settings)
    assert len(after.train) + len(after.test) == 21
    assert set(after.train.paths) < set(before.train.paths)
    assert set(after.test.paths) <= set(before.test.paths)


def test_what_is_left_out_of_a_test_set_is_told(root: Path, tmp_path: Path) -> None:
    copy = make_squares(tmp_path, train=2, test=4)
    (copy / "VOC2007/Annotations/test001.xml").unlink()
    broken = BrokenFiles(stop=False)
    settings = DataSettings(name="voc", root=copy, broken_files="skip", image_size=32)
    test, remarks = opened_test_set(settings, ("Red", "blue"), device=torch.device("cpu"), broken=broken)
    assert test.size == 4
    assert remarks[0] == "3 objects to find"
    assert remarks[1] == "objects of 1 other class are left out: red"
    (path,) = broken.found
    assert path.endswith("test001.xml")


def test_names_that_are_none_are_refused() -> None:
    for changes, seen in (
        ({"sets": ","}, "--data.sets is ',', which names nothing"),
        ({"test": " "}, "--data.test is ' ', which names nothing"),
        ({"classes": ""}, "--data.classes is '', which names nothing"),
        ({"classes": "red, blue,red"}, "--data.classes has 'red' twice"),
    ):
        with pytest.raises(ValueError, match=seen):
            DataSettings(name="voc", root=Path("x"), **changes)


def test_broken_files_end_a_run_or_are_passed_over(tmp_path: Path) -> None:
    root = make_squares(tmp_path, train=8, test=4)
    cut = root / "VOC2007/JPEGImages/trainval003.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    damaged = root / "VOC2007/Annotations/trainval005.xml"
    damaged.write_text("<annotation>")
    with pytest.raises(UserError) as info:
        source(root)
    assert info.value.where == str(damaged)
    with source(root, broken_files="skip", batch_size=7) as loaded:
        assert loaded.spec.train_size == 7
        assert any(str(damaged) in remark for remark in loaded.remarks)
        for batch in islice(loaded.train(), 3):
            check_boxes(batch, within=0.05)
        assert set(loaded.broken_files()) == {str(cut), str(damaged)}
    damaged.unlink()
    (root / "VOC2007/ImageSets/Main/trainval.txt").write_text("trainval003\ntrainval001\n")
    with source(root, batch_size=2) as strict, pytest.raises(UserError, match="The image file") as stopped:
        list(islice(strict.train(), 2))
    assert stopped.value.where == str(cut)


def test_classes_may_be_chosen(root: Path) -> None:
    with source(root, classes="red") as loaded:
        assert loaded.spec.classes == ("red",)
        assert unpacked(next(loaded.train())[1]).labels.tolist() == [[0]] * 4
    with pytest.raises(UserError, match="No object is of the class 'green'"):
        source(root, classes="red,green")
