"""Training on a folder laid out as ImageNet, from flags to summary: broken files, wrong folders, nothing left."""

import json
import re
import shutil
from pathlib import Path

import pytest

from .. import photographs
from . import runs


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs.make_root(tmp_path_factory.mktemp("data") / "sound", classes=4, train=8, val=4)


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "data"))


def flags(root: Path, loader: str, output: Path) -> list[str]:
    """A run of 4 rounds for 2 workers: two epochs of 32 images."""
    values = {
        "data.name": "imagenet",
        "data.root": root,
        "data.loader": loader,
        "data.batch_size": 4,
        "data.image_size": photographs.SIZE,
        "data.decode_threads": 1,
        "model.sections": "1,1,6,1",
        "model.width_factor": 0.125,
        "model.stem": "imagenet",
        "model.block": "bottleneck",
        "min_blocks": 3,
        "local_iterations": 2,
        "epochs": 2,
        "output": output,
    }
    return [f"--{name}={value}" for name, value in values.items()]


def test_broken_files_are_counted_and_named_at_the_end(root: Path, tmp_path: Path) -> None:
    broken = [root / "train/n00000001/train_1_3.JPEG", root / "val/n00000002/val_2_0.JPEG"]
    for file in broken:
        file.write_bytes(photographs.broken_files()["jpeg-cut-short"])
    ended = runs.run(*flags(root, "auto", tmp_path / "run"), "--data.broken_files=skip")
    assert ended.status == 0, ended
    assert "2 image files passed over, being broken:\n" in ended.stdout
    assert re.search(r"4 classes, decoded by (DALI|torchvision)\n", ended.stdout)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["broken_files"].keys() == {str(file) for file in broken}
    for path, fault in summary["broken_files"].items():
        assert "truncated" in fault
        assert f"  {path}: {fault}\n" in ended.stdout
    assert summary["rounds"] == 4
    described = json.loads((tmp_path / "run" / "model.json").read_text())
    assert described["classes"] == [f"n{number:08d}" for number in range(4)]
    assert (described["image_size"], described["test_resize"]) == (photographs.SIZE, round(photographs.SIZE * 8 / 7))


def test_a_broken_file_that_one_rank_meets_ends_all(root: Path, loader: str, tmp_path: Path) -> None:
    broken = root / "train/n00000001/train_1_3.JPEG"
    broken.write_bytes(b"")
    ended = runs.run(*flags(root, loader, tmp_path / "run"))
    assert ended.mistake.startswith(f"The image file is empty [{broken}, rank ")
    assert "local training, waiting for a batch]. Put a sound copy in its place, or pass over" in ended.mistake
    assert ended.status != 0
