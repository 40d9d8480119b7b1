"""ImageNet's folder layout through both loaders: batches, epochs, positions, broken files, and wrong folders."""

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from resist_hvd.data import Batch, DataSource, Shard, load
from resist_hvd.data.files import imagenet
from resist_hvd.data.files.loader import preprocess_of
from resist_hvd.data.side_stream import SideStream
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings

from .. import photographs

CPU = torch.device("cpu")
TRAIN_IMAGES, VAL_IMAGES = 12, 6


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound data folder; tests leave it as it is."""
    return photographs.make_root(tmp_path_factory.mktemp("imagenet") / "sound")


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    """A data folder for one test to spoil."""
    return Path(shutil.copytree(sound, tmp_path / "data"))


@pytest.fixture
def opened() -> Iterator[Callable[..., DataSource]]:
    """Opens sources, which are closed after the test."""
    with ExitStack() as sources:

        def open_source(root: Path, loader: str, *, rank: int = 0, workers: int = 1, **changes: Any) -> DataSource:
            values = {"batch_size": 4, "test_batch_size": 4, "image_size": photographs.SIZE, "decode_threads": 1}
            settings = DataSettings(name="imagenet", root=root, loader=loader, **{**values, **changes})  # type: ignore[arg-type]
            source = load(settings, shard=Shard(rank=rank, size=workers), seed=5, device=CPU)
            return sources.enter_context(source)

        yield open_source


Open = Callable[..., DataSource]


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def drawn(source: DataSource, batches: int, samples: int = 0) -> list[Batch]:
    stream = source.train(samples)
    return [next(stream) for _ in range(batches)]


def identified(root: Path, half: str, batches: list[Batch]) -> list[int]:
    """Which image of a folder each plain image of some batches is: the nearest, without doubt."""
    files = sorted((root / half).glob("*/*.JPEG"))
    reference = DataSettings(name="imagenet", root=root, image_size=photographs.SIZE, loader="torchvision")
    known = torch.stack([preprocess_of(reference).read(file) for file in files])
    found = []
    for images, _ in batches:
        distances = (images[:, None] - known[None]).abs().mean(dim=(2, 3, 4))
        assert (distances.min(dim=1).values < 0.05).all()
        found += distances.argmin(dim=1).tolist()
    return found


def test_what_a_source_says_of_itself(sound: Path, loader: str, opened: Open) -> None:
    source = opened(sound, loader)
    spec = source.spec
    assert spec.name == "imagenet"
    assert spec.classes == ("n00000000", "n00000001", "n00000002")
    assert (spec.train_size, spec.test_size) == (TRAIN_IMAGES, VAL_IMAGES)
    assert (spec.channels, spec.image_size) == (3, photographs.SIZE)
    assert spec.mean == pytest.approx((123.675, 116.28, 103.53))
    assert source.loader_name == {"dali": "DALI", "torchvision": "torchvision"}[loader]


def test_all_evaluations_are_made_in_one_stream(sound: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU memory belongs to the stream that it was used in: each evaluation's own would be lost to the next."""
    made = mock.Mock(side_effect=SideStream)
    monkeypatch.setattr(imagenet, "SideStream", made)
    source = opened(sound, "torchvision")
    drawn(source, 1)
    for _ in range(2):
        assert sum(len(labels) for _, labels in source.test()) == VAL_IMAGES
        assert len(list(source.calibration())) > 0
    assert made.mock_calls == [mock.call(CPU)] * 2, "one for training, in a thread of its own, and one for the rest"


@pytest.mark.parametrize(("image_type", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_training_batch(sound: Path, loader: str, image_type: str, dtype: torch.dtype, opened: Open) -> None:
    images, labels = next(opened(sound, loader, image_type=image_type).train())
    assert images.shape == (4, 3, photographs.SIZE, photographs.SIZE)
    assert images.dtype == dtype
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64
    # Normalised by ImageNet's figures: grey levels from 0 to 255 are from -2.2 to 2.7.
    assert -2.3 < images.min() < images.max() < 2.7


def test_a_batch_stays_as_it_is_when_more_are_drawn(sound: Path, loader: str, opened: Open) -> None:
    stream = opened(sound, loader).train()
    first = next(stream)
    kept = first[0].clone(), first[1].clone()
    for _ in range(6):
        next(stream)
    assert same(first, kept)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batch_size", [3, 5])
def test_every_image_once_an_epoch_over_all_workers(
    root: Path, loader: str, workers: int, batch_size: int, opened: Open
) -> None:
    """Each image in a class of its own, so that labels tell images apart; 12 images are no multiple of 5."""
    for half in ("train", "val"):
        for file in list((root / half).glob("*/*.JPEG")):
            (root / half / file.stem).mkdir()
            file.rename(root / half / file.stem / file.name)
        for folder in (root / half).glob("n*"):
            folder.rmdir()
    shutil.rmtree(root / "val")
    shutil.copytree(root / "train", root / "val")
    sources = [opened(root, loader, rank=rank, workers=workers, batch_size=batch_size) for rank in range(workers)]
    epochs = 5
    steps = -(-epochs * TRAIN_IMAGES // (batch_size * workers))
    by_worker = [[labels.tolist() for _, labels in drawn(source, steps)] for source in sources]
    in_order = [label for step in zip(*by_worker, strict=True) for labels in step for label in labels]
    for epoch in range(epochs):
        assert sorted(in_order[epoch * TRAIN_IMAGES : (epoch + 1) * TRAIN_IMAGES]) == list(range(TRAIN_IMAGES))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_test_image_once_over_all_shares(sound: Path, loader: str, workers: int, opened: Open) -> None:
    source = opened(sound, loader)
    found: list[int] = []
    for rank in range(workers):
        batches = list(source.test(Shard(rank=rank, size=workers)))
        numbers = identified(sound, "val", batches)
        assert torch.cat([labels for _, labels in batches]).tolist() == [number // 2 for number in numbers]
        found += numbers
    assert sorted(found) == list(range(VAL_IMAGES))
    # Batches of at most 4: of 6 images, the last has the 2 that are left.
    assert [len(labels) for _, labels in source.test()] == [4, 2]


def test_the_calibration_set_is_of_training_images_without_augmentation(sound: Path, loader: str, opened: Open) -> None:
    source = opened(sound, loader, calibration_images=7)
    first = list(source.calibration())
    numbers = identified(sound, "train", first)
    assert len(set(numbers)) == 7
    assert torch.cat([labels for _, labels in first]).tolist() == [number // 4 for number in numbers]
    assert all(same(one, other) for one, other in zip(first, source.calibration(), strict=True))


def test_a_position_comes_back_to_the_bit(sound: Path, loader: str, opened: Open) -> None:
    """In the midst of an epoch: the third batch of 4 of 12 images is followed by a fourth, of the next epoch."""
    whole = drawn(opened(sound, loader), 6)
    assert all(same(one, other) for one, other in zip(drawn(opened(sound, loader), 4, 8), whole[2:], strict=True))


def test_training_goes_on_where_it_stands_and_begins_anew_elsewhere(sound: Path, loader: str, opened: Open) -> None:
    source = opened(sound, loader)
    stream = source.train()
    first, second = next(stream), next(stream)
    assert source.train(8) is stream
    next(stream)
    assert same(next(source.train(4)), second)
    assert same(next(source.train()), first)
    assert list(stream) == []


def test_one_worker_draws_what_all_of_them_draw(sound: Path, opened: Open) -> None:
    sources = [opened(sound, "torchvision", rank=rank, workers=2, batch_size=2) for rank in range(2)]
    expected = [drawn(source, 1)[0] for source in sources]
    whole = sources[1].train(shard=Shard(rank=0, size=1))
    assert all(same(next(whole), batch) for batch in expected)
    assert same(next(sources[1].train()), expected[1])


def test_another_number_of_workers_goes_on_at_the_same_count(sound: Path, loader: str, opened: Open) -> None:
    two = [drawn(opened(sound, loader, rank=rank, workers=2, batch_size=2), 1)[0] for rank in range(2)]
    whole = drawn(opened(sound, loader), 2)
    assert torch.equal(torch.cat([labels for _, labels in two]), whole[0][1])
    assert same(drawn(opened(sound, loader), 1, 4)[0], whole[1])


def test_seeds_epochs_and_the_augmentation_differ(sound: Path, loader: str, opened: Open) -> None:
    batches = drawn(opened(sound, loader, batch_size=12), 2)
    (images, labels), (again, labels_again) = batches
    assert labels.tolist() != labels_again.tolist()
    for image, label in zip(images, labels, strict=True):
        for other, other_label in zip(again, labels_again, strict=True):
            if label == other_label:
                assert not torch.equal(image, other)


def test_neither_pytorchs_nor_numpys_generator_is_touched(sound: Path, loader: str, opened: Open) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(1), np.random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    source = opened(sound, loader)
    drawn(source, 2)
    list(source.test())
    assert (torch.rand(1), np.random.random()) == expected


# -- broken files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", photographs.broken_files())
def test_a_broken_file_is_passed_over_and_named(
    kind: str, root: Path, loader: str, opened: Open, capfd: pytest.CaptureFixture[str]
) -> None:
    for half in ("train", "val"):
        broken = root / half / "n00000001" / f"{half}_1_1.JPEG"
        broken.write_bytes(photographs.broken_files()[kind])
        # Named apart, though its label is that of its neighbours.
        broken.rename(broken.with_name(f"{half}_1_0x.JPEG"))
    source = opened(root, loader, broken_files="skip", batch_size=6)
    labels = torch.cat([labels for _, labels in drawn(source, 4)])
    # Two epochs: the image that takes its place is the next one of the same class.
    assert Counter(labels.tolist()) == {0: 8, 1: 8, 2: 8}
    assert source.broken_files().keys() == {str(root / "train" / "n00000001" / "train_1_0x.JPEG")}
    assert sorted(torch.cat([labels for _, labels in source.test()]).tolist()) == [0, 0, 1, 2, 2]
    assert source.broken_files().keys() == {
        str(root / half / "n00000001" / f"{half}_1_0x.JPEG") for half in ("train", "val")
    }
    said = capfd.readouterr().err
    for path, fault in source.broken_files().items():
        assert said.count(f"Passed over: the image file {fault} [{path}]") == 1


@pytest.mark.parametrize("kind", ["empty", "jpeg-cut-short"])
def test_a_broken_file_stops_the_run_unless_it_is_to_be_passed_over(
    kind: str, root: Path, loader: str, opened: Open
) -> None:
    for half in ("train", "val"):
        (root / half / "n00000002" / f"{half}_2_0.JPEG").write_bytes(photographs.broken_files()[kind])
    source = opened(root, loader)
    with pytest.raises(UserError, match=r"The image file is .*\[.*/train_2_0.JPEG\]. Put .*--data.broken_files skip"):
        drawn(source, 6)
    with pytest.raises(UserError, match=r"/n00000002/val_2_0.JPEG"):
        list(source.test())


def test_what_takes_a_broken_files_place_is_the_same_after_resuming(root: Path, loader: str, opened: Open) -> None:
    for image in (1, 2):
        (root / "train" / "n00000001" / f"train_1_{image}.JPEG").write_bytes(b"")
    whole = drawn(opened(root, loader, broken_files="skip"), 6)
    for start in (1, 2, 3):
        resumed = opened(root, loader, broken_files="skip")
        assert all(same(one, other) for one, other in zip(drawn(resumed, 3, 4 * start), whole[start:], strict=False))


@pytest.mark.parametrize("broken", [0, 2, 5])
def test_a_broken_file_among_batches_made_in_advance_costs_no_sound_one(
    broken: int, root: Path, loader: str, opened: Open
) -> None:
    file = sorted((root / "val").glob("*/*.JPEG"))[broken]
    file.write_bytes(b"")
    source = opened(root, loader, broken_files="skip", test_batch_size=1, prefetch=3)
    found = []
    for _, labels in source.test():
        found.append(labels.item())
        time.sleep(0.05)  # what is made in advance is made, or has failed, before the next one is asked for
    expected = [0, 0, 1, 1, 2, 2]
    del expected[broken]
    assert found == expected
    assert source.broken_files() == {str(file): "is empty"}


def test_nothing_but_broken_files(root: Path, loader: str, opened: Open) -> None:
    for file in (root / "train").glob("*/*.JPEG"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"All 12 image files are broken \[.*/train\]"):
        drawn(opened(root, loader, broken_files="skip"), 1)


def test_a_file_that_vanishes(root: Path, loader: str, opened: Open) -> None:
    source = opened(root, loader)
    (root / "train" / "n00000000" / "train_0_0.JPEG").unlink()
    with pytest.raises(UserError, match=r"The image file cannot be read \(No such file or directory\) \[.*_0_0.JPEG\]"):
        drawn(source, 6)


def test_a_process_that_dies(sound: Path, opened: Open) -> None:
    source = opened(sound, "torchvision")
    drawn(source, 1)
    (worker,) = [child for child in multiprocessing.active_children() if child.name.startswith("ForkServer")]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"A process that decodes images died.*Check this machine's memory"):
        drawn(source, 20, samples=4)


# -- wrong folders and settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root), r"There is no such folder \[.*/data\]. Give the folder that holds train"),
        (lambda root: shutil.rmtree(root / "train"), r"no folder train .*Put the training images into train/<class>/"),
        (lambda root: shutil.rmtree(root / "val"), r"neither a folder test nor a folder val .*launch/prepare-imagenet"),
        (
            lambda root: (
                [file.rename(root / "val" / file.name) for file in list((root / "val").glob("*/*"))]
                and [folder.rmdir() for folder in (root / "val").glob("n*")]
            ),
            r"lie flat in the folder.*\[.*/val\].*launch/prepare-imagenet",
        ),
        (
            lambda root: (root / "val" / "n00000002").rename(root / "val" / "n00000009"),
            r"1 of the 3 classes of val are not among the 3 of train: n00000009",
        ),
        (
            lambda root: [f.unlink() for f in (root / "val" / "n00000002").iterdir()],
            r"has no image in it .*val/n00000002",
        ),
        (
            lambda root: [f.unlink() for f in (root / "train" / "n00000001").iterdir()],
            r"has no image in it .*n00000001",
        ),
    ],
)
def test_a_wrong_folder(root: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(root)
    with pytest.raises(UserError, match=message):
        load(DataSettings(name="imagenet", root=root), shard=Shard(rank=0, size=1), seed=0, device=CPU)


def test_a_file_for_a_folder(root: Path) -> None:
    file = root / "train" / "n00000000" / "train_0_0.JPEG"
    with pytest.raises(UserError, match=r"This is not a folder \[.*JPEG\]"):
        load(DataSettings(name="imagenet", root=file), shard=Shard(rank=0, size=1), seed=0, device=CPU)


def test_a_class_may_lack_in_the_validation_half_and_that_is_said(root: Path, loader: str, opened: Open) -> None:
    shutil.rmtree(root / "val" / "n00000001")
    source = opened(root, loader)
    assert source.spec.test_size == 4
    assert sorted(torch.cat([labels for _, labels in source.test()]).tolist()) == [0, 0, 2, 2]
    (remark,) = source.remarks
    assert "val has images of 2 of the 3 classes, and none of n00000001" in remark


def test_fewer_images_than_workers_draw(sound: Path, loader: str, opened: Open) -> None:
    with pytest.raises(UserError, match=r"12 training images, fewer than the 16 that 4 workers draw.*\[.*train"):
        opened(sound, loader, workers=4)


def test_dali_is_asked_for_but_not_there(sound: Path, opened: Open) -> None:
    with (
        mock.patch("resist_hvd.data.files.imagenet.dali_is_installed", return_value=False),
        pytest.raises(UserError, match=r"NVIDIA DALI is not installed.*launch/setup --dali.*--data.loader torchvision"),
    ):
        opened(sound, "dali")


@pytest.mark.parametrize(("installed", "expected"), [(False, "TorchvisionLoader"), (True, "DaliLoader")])
def test_auto_is_dali_where_it_is_installed(sound: Path, installed: bool, expected: str, opened: Open) -> None:
    if installed:
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    with mock.patch("resist_hvd.data.files.imagenet.dali_is_installed", return_value=installed):
        source = opened(sound, "auto")
    assert type(source._loader).__name__ == expected  # type: ignore[attr-defined]


def test_closing_leaves_no_thread_and_no_process(sound: Path, loader: str, opened: Open) -> None:
    before = set(threading.enumerate())
    source = opened(sound, loader)
    drawn(source, 2)
    list(source.test())
    source.close()
    # The thread that feeds a queue between processes ends a moment after the queue is closed.
    end = time.monotonic() + 60
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < end, left
        time.sleep(0.01)
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("ForkServer")]


def test_a_gpu_out_of_memory_beside_torchvision_is_called_that(
    sound: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Copying:
        """A DataLoader whose batches do not fit."""

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __iter__(self) -> Iterator[Any]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("resist_hvd.data.files.process_batches.DataLoader", Copying)
    with pytest.raises(UserError, match=r"Memory ran out.*Tried to allocate 20.00 MiB.*--data.batch_size"):
        next(opened(sound, "torchvision").train())
