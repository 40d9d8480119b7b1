"""Wrong settings of the data are refused with a sentence that names the flag."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from resist_hvd.data import Shard
from resist_hvd.settings.data import DaliSettings, DataName, DataSettings


def test_the_defaults_are_the_embedded_demonstration() -> None:
    assert DataSettings().name == "digits"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "mnist"}, r"--data.name is 'mnist'; give one of digits, cifar10, cifar100, svhn, folder, imagenet"),
        ({"batch_size": 0}, r"--data.batch_size is 0; give 1 or more"),
        ({"test_batch_size": -1}, r"--data.test_batch_size is -1; give 1 or more"),
        ({"calibration_images": 0}, r"--data.calibration_images is 0"),
        ({"image_size": 0}, r"--data.image_size is 0"),
        ({"decode_threads": 0}, r"--data.decode_threads is 0"),
        ({"crop_padding": -1}, r"--data.crop_padding is -1; give 0 for no crop"),
        ({"resident_limit_gib": 0.0}, r"--data.resident_limit_gib is 0.0; give a number above 0"),
        ({"resident_limit_gib": float("nan")}, r"--data.resident_limit_gib is nan"),
        ({"name": "imagenet", "root": Path("x"), "test_resize": 200}, r"200, less than the image_size of 224"),
        ({"prefetch": 0}, r"--data.prefetch is 0"),
        ({"crop_area": 0.0}, r"--data.crop_area is 0.0; give a share above 0, at most 1"),
        ({"crop_area": 1.5}, r"--data.crop_area is 1.5"),
        ({"color_jitter": 1.0}, r"--data.color_jitter is 1.0; give 0 for none"),
    ],
)
def test_a_wrong_value_is_refused_by_its_flag(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSettings(**changes)


NOT_DEFAULTS: dict[str, Any] = {
    "root": Path("x"),
    "download": True,
    "batch_size": 3,
    "test_batch_size": 3,
    "validation": 0.1,
    "calibration_images": 3,
    "image_size": 300,
    "test_resize": 400,
    "crop_area": 0.5,
    "color_jitter": 0.1,
    "crop_padding": 1,
    "flip": False,
    "resident_limit_gib": 1.0,
    "extra_tests": Path("y"),
    "decode_threads": 2,
    "loader": "torchvision",
    "prefetch": 3,
    "image_type": "bf16",
    "broken_files": "skip",
    "sets": "2007-train",
    "test": "2007-val",
    "classes": "cat",
    "ignore_exif": True,
    "jitter": 0.3,
    "dali": DaliSettings(width_hint=9),
}
OF_VOC = "sets test classes ignore_exif jitter"
USELESS = {
    "digits": "root download test_resize crop_area color_jitter extra_tests decode_threads loader "
    f"prefetch image_type broken_files dali {OF_VOC}",
    "cifar10": f"test_resize crop_area color_jitter extra_tests loader prefetch image_type broken_files dali {OF_VOC}",
    "folder": f"download test_resize crop_area color_jitter loader prefetch image_type dali {OF_VOC}",
    "imagenet": f"download crop_padding resident_limit_gib {OF_VOC}",
    "voc": "download test_resize crop_area crop_padding resident_limit_gib extra_tests loader dali",
}


@pytest.mark.parametrize("name", USELESS)
def test_a_setting_that_does_nothing_for_a_data_set_is_refused_by_its_flag(name: Any) -> None:
    needed = {"root": Path("x")} if name in ("folder", "imagenet", "voc") else {}
    assert {"name", *NOT_DEFAULTS} == {field.name for field in dataclasses.fields(DataSettings)}
    for setting, value in NOT_DEFAULTS.items():
        values = {"name": name, **needed, setting: value}
        if setting in USELESS[name].split():
            with pytest.raises(ValueError, match=rf"^--data\.{setting}\b.*which does nothing for {name}: it is for"):
                DataSettings(**values)
        else:
            assert getattr(DataSettings(**values), setting) == value


def test_what_crops_another_data_set_is_named() -> None:
    with pytest.raises(ValueError, match=r"crop_padding is 4, which does nothing for imagenet.*--data\.crop_area"):
        DataSettings(name="imagenet", root=Path("x"), crop_padding=4)


def test_one_setting_of_dali_is_named_whole() -> None:
    with pytest.raises(ValueError, match=r"--data\.dali\.width_hint is 9, which does nothing for folder"):
        DataSettings(name="folder", root=Path("x"), dali=DaliSettings(width_hint=9))


def test_every_setting_is_documented_where_flags_take_their_help_from() -> None:
    source = Path(__file__).parents[2].joinpath("resist_hvd", "settings", "data.py").read_text()
    settings = source[source.index("class DaliSettings(") :]
    for field in (*dataclasses.fields(DataSettings), *dataclasses.fields(DaliSettings)):
        after = settings.split(f"\n    {field.name}: ", 1)[1].split("\n", 2)[1]
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


@pytest.mark.parametrize(
    ("name", "cores", "given", "threads"),
    [
        ("imagenet", 7.9, None, 7),
        ("imagenet", 0.5, None, 1),
        ("imagenet", 64.0, None, 16),
        ("imagenet", 64.0, 24, 24),
        ("imagenet", 8.0, 3, 3),
        ("folder", 64.0, None, 64),
    ],
)
def test_as_many_threads_decode_as_a_worker_has_cores(
    name: DataName, cores: float, given: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    settings = DataSettings(name=name, root=Path("images"), decode_threads=given)
    assert settings.on_cores(cores).threads == threads
    assert settings.decode_threads == given


def test_a_set_that_decodes_nothing_takes_any_number_of_cores() -> None:
    assert DataSettings(name="digits").on_cores(8.0) == DataSettings(name="digits")


def test_without_a_share_of_cores_there_are_as_many_threads_as_this_process_may_run_on() -> None:
    assert DataSettings(name="imagenet", root=Path("images")).threads == len(os.sched_getaffinity(0))
