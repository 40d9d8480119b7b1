"""All of CIFAR-10 as a folder of JPEGs, where there is its archive: see RESIST_HVD_TEST_DATA."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from resist_hvd.data import DataSource, Shard, load
from resist_hvd.settings.data import DataSettings

ARCHIVE = "cifar10-jpeg.tar.xz"


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataSource]:
    folder = os.environ.get("RESIST_HVD_TEST_DATA")
    if folder is None:
        pytest.skip(f"RESIST_HVD_TEST_DATA does not name a folder with {ARCHIVE}")
    root = tmp_path_factory.mktemp("cifar10")
    with tarfile.open(Path(folder) / ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    (train,) = root.rglob("train")
    settings = DataSettings(name="folder", root=train.parent, batch_size=500, test_batch_size=1000)
    with load(settings, shard=Shard(rank=0, size=1), seed=0, device=torch.device("cpu")) as source:
        yield source


@pytest.mark.slow
def test_it_is_all_of_cifar10(cifar10: DataSource) -> None:
    spec = cifar10.spec
    assert (spec.train_size, spec.test_size, spec.channels, spec.image_size) == (50_000, 10_000, 3, 32)
    assert spec.classes == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    labels = torch.cat([labels for _, labels in cifar10.test()])
    assert torch.bincount(labels).tolist() == [1000] * 10


@pytest.mark.slow
def test_an_epoch_has_5000_images_of_each_class_and_is_normalised(cifar10: DataSource) -> None:
    stream = cifar10.train()
    batches = [next(stream) for _ in range(100)]
    assert torch.bincount(torch.cat([labels for _, labels in batches])).tolist() == [5000] * 10
    pixels = torch.cat([images[:, :, 12:20, 12:20] for images, _ in cifar10.test()])
    # The middle of the test images is somewhat brighter than the average pixel, and of its spread.
    assert pixels.mean().abs() < 0.2
    assert 0.8 < pixels.std() < 1.1
