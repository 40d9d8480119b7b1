"""A single image is prepared as the test set's images are: of every data set, to the bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resist_hvd.data import DataSource, Shard, load
from resist_hvd.data.memory import digits
from resist_hvd.data.preprocess import Preprocess
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings

from .. import photographs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = photographs.make_root(tmp_path_factory.mktemp("photographs"), classes=2, train=2, val=4)
    for number, (name, (ending, content)) in enumerate(photographs.foreign_files().items()):
        (folder / f"val/n0000000{number % 2}/{name}.{ending}").write_bytes(content)
    return folder


def opened(**changes: Any) -> DataSource:
    settings = DataSettings(batch_size=2, test_batch_size=3, **changes)
    return load(settings, shard=Shard(rank=0, size=1), seed=1, device=torch.device("cpu"))


def through_json(source: DataSource) -> Preprocess:
    """What is made of a model's description, as it is written and read again."""
    return Preprocess.from_json(json.loads(json.dumps({**source.spec.preprocess.to_json(), "data": source.spec.name})))


FOLDERS: list[dict[str, Any]] = [
    {"name": "folder", "image_size": 28},
    {"name": "imagenet", "image_size": 28, "loader": "torchvision", "decode_threads": 1},
    {"name": "imagenet", "image_size": 28, "test_resize": 41, "loader": "torchvision", "decode_threads": 1},
]


@pytest.mark.parametrize("changes", FOLDERS, ids=["folder", "imagenet", "test_resize"])
def test_a_file_is_what_evaluation_makes_of_it(changes: dict[str, Any], root: Path) -> None:
    with opened(root=root, **changes) as source:
        expected = torch.cat([images for images, _ in source.test()])
        prepare = through_json(source)
    files = sorted((root / "val").glob("*/*"), key=lambda path: bytes(path))
    assert len(files) == len(expected)
    for file, image in zip(files, expected, strict=True):
        assert torch.equal(prepare.read(file), image), file
        with Image.open(file) as opened_file:
            assert (prepare(opened_file) - image).abs().max() < 0.1, file  # decoders may differ by a grey level


def test_a_grey_image_is_what_evaluation_makes_of_it(tmp_path: Path) -> None:
    images = digits.read(DataSettings()).test.images
    with opened(name="digits") as source:
        expected = torch.cat([images for images, _ in source.test()])
        prepare = through_json(source)
    for pixels, image in zip(images[:20], expected, strict=False):
        file = tmp_path / "digit.png"
        Image.fromarray(pixels[..., 0].numpy()).save(file)
        assert torch.equal(prepare(pixels.permute(2, 0, 1)), image)
        assert torch.equal(prepare.read(file), image)
    assert prepare(Image.new("RGB", (8, 8))).shape == (1, 32, 32)


def test_a_tensor_and_an_image_of_pillow_are_the_same() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (30, 50, 3)).astype(np.uint8)
    for size in (None, 24):
        prepare = Preprocess(image_size=20, channels=3, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), test_resize=size)
        assert torch.equal(prepare(torch.from_numpy(pixels).permute(2, 0, 1)), prepare(Image.fromarray(pixels)))
        assert prepare(torch.zeros(1, 9, 9, dtype=torch.uint8)).shape == (3, 20, 20)
    with pytest.raises(ValueError, match=r"uint8 \[1 or 3, height, width\], not torch.float32 \[3, 4, 4\]"):
        prepare(torch.zeros(3, 4, 4))


def test_models_of_earlier_versions_are_prepared_for() -> None:
    said = {"image_size": 224, "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}
    assert Preprocess.from_json({**said, "data": "imagenet"}).test_resize == 256
    assert Preprocess.from_json({**said, "data": "photographs"}).test_resize is None


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    prepare = Preprocess(image_size=20, channels=3, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    (tmp_path / "a.jpg").write_bytes(b"no image")
    for name, seen in (("a.jpg", "no image"), ("b.jpg", "No such file")):
        with pytest.raises(UserError, match=seen) as caught:
            prepare.read(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)
