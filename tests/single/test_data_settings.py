"""Wrong settings of the data are refused with a sentence that names the flag."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from resist_hvd.data import DataSettings, Shard
from resist_hvd.data.settings import DaliSettings


def test_the_defaults_are_the_embedded_demonstration() -> None:
    assert DataSettings().name == "digits"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "mnist"}, r"--data.name is 'mnist'; give one of digits, cifar10, cifar100, svhn, folder, imagenet"),
        ({"batch_size": 0}, r"--data.batch_size is 0; give a number of at least 1"),
        ({"test_batch_size": -1}, r"--data.test_batch_size is -1; give a number of at least 1"),
        ({"calibration_images": 0}, r"--data.calibration_images is 0"),
        ({"image_size": 0}, r"--data.image_size is 0"),
        ({"decode_threads": 0}, r"--data.decode_threads is 0"),
        ({"crop_padding": -1}, r"--data.crop_padding is -1; give 0 for no crop"),
        ({"resident_limit_gib": 0.0}, r"--data.resident_limit_gib is 0.0; give a number above 0"),
        ({"resident_limit_gib": float("nan")}, r"--data.resident_limit_gib is nan"),
        ({"name": "folder"}, r"there is no folder; give it with --data.root DIR"),
        ({"name": "folder", "root": Path("x"), "download": True}, r"a folder is not downloaded; leave the flag out"),
        ({"name": "cifar10", "image_size": 64}, r"cifar10 has a size of its own, 32; leave the flag out"),
        ({"name": "imagenet"}, r"--data.name is imagenet, but there is no folder; give it with --data.root DIR"),
        ({"name": "imagenet", "root": Path("x"), "crop_padding": 4}, r"give --data.crop_area instead"),
        ({"name": "imagenet", "root": Path("x"), "test_resize": 200}, r"200, less than the image_size of 224"),
        ({"name": "cifar10", "test_resize": 40}, r"--data.test_resize is for imagenet, not cifar10"),
        ({"prefetch": 0}, r"--data.prefetch is 0"),
        ({"crop_area": 0.0}, r"--data.crop_area is 0.0; give a share above 0, up to 1"),
        ({"crop_area": 1.5}, r"--data.crop_area is 1.5"),
        ({"color_jitter": 1.0}, r"--data.color_jitter is 1.0; give 0 for none"),
    ],
)
def test_a_wrong_value_is_refused_by_its_flag(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSettings(**changes)


def test_every_setting_is_documented_where_flags_take_their_help_from() -> None:
    source = Path(__file__).parents[2].joinpath("resist_hvd", "data", "settings.py").read_text()
    for field in (*dataclasses.fields(DataSettings), *dataclasses.fields(DaliSettings)):
        after = source.split(f"    {field.name}: ", 1)[1].split("\n", 2)[1]
        assert after.strip().startswith('"""'), field.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hardware_load": 1.5}, r"--data.dali.hardware_load is 1.5; give a share from 0 to 1"),
        ({"device_buffer": -1}, r"--data.dali.device_buffer is -1; give 0 or more"),
    ],
)
def test_a_wrong_value_for_dali_is_refused_by_its_flag(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DaliSettings(**changes)


@pytest.mark.parametrize(("rank", "size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_shard_outside_the_world_is_refused(rank: int, size: int) -> None:
    with pytest.raises(ValueError, match="a shard's rank must be"):
        Shard(rank=rank, size=size)
