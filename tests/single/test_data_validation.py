"""Held-out training images: which they are, and that nothing else is evaluated on, or trained on twice."""

import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from resist_hvd.data import Batch, DataSource, Shard, load
from resist_hvd.data.validation import held_out
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataName, DataSettings

from .. import photographs

SHARE = 0.25


def source_of(name: DataName, root: Path | None, *, share: float = SHARE, seed: int = 3, **changes: Any) -> DataSource:
    settings = DataSettings(name=name, root=root, validation=share, batch_size=4, **changes)
    return load(settings, shard=Shard(rank=0, size=1), seed=seed, device=torch.device("cpu"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photographs.make_root(tmp_path / "data", classes=3, train=8, val=3)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=200), st.floats(0.05, 0.95))
def test_of_each_class_that_share_is_held_out_and_never_all(labels: list[int], share: float) -> None:
    numbers = np.array(labels, dtype=np.int64)
    counts = Counter(labels)
    wanted = {label: min(round(share * count), count - 1) for label, count in counts.items()}
    if not any(wanted.values()):
        with pytest.raises(UserError, match=f"holds out none of {len(labels)} training images"):
            held_out(numbers, share)
        return
    chosen = held_out(numbers, share)
    assert Counter(numbers[chosen].tolist()) == Counter({label: count for label, count in wanted.items() if count})
    assert np.array_equal(chosen, held_out(numbers, share))


def test_they_come_from_all_over_a_class() -> None:
    places = np.flatnonzero(held_out(np.zeros(1000, dtype=np.int64), 0.1))
    assert len(places) == 100
    assert 400 < places.mean() < 600


def levels_of(source: DataSource, batches: Iterator[Batch]) -> list[int]:
    """Each image's grey levels, in a number: they are normalised by what is trained on."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (source.spec.mean, source.spec.std))
    levels = [(images * std + mean).round().to(torch.uint8) for images, _ in batches]
    return sorted(zlib.crc32(image.numpy().tobytes()) for images in levels for image in images)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("digits", {"crop_padding": 0}),
        ("folder", {"crop_padding": 0, "flip": False, "image_size": 16}),
        ("imagenet", {"loader": "torchvision", "decode_threads": 1, "image_size": 16}),
    ],
)
def test_what_is_evaluated_on_is_of_the_training_half_and_not_trained_on(
    name: DataName, changes: dict[str, Any], root: Path
) -> None:
    where = None if name == "digits" else root
    with source_of(name, where, share=0.0, calibration_images=10**6, **changes) as whole:
        everything = levels_of(whole, whole.calibration())
        count, classes = whole.spec.train_size, len(whole.spec.classes)
        assert not any("validation" in remark for remark in whole.remarks)
    with source_of(name, where, calibration_images=10**6, **changes) as source:
        trained, held = levels_of(source, source.calibration()), levels_of(source, source.test())
        assert (len(trained), len(held)) == (source.spec.train_size, source.spec.test_size)
        assert Counter(trained) + Counter(held) == Counter(everything)
        assert abs(source.spec.test_size - SHARE * count) <= classes / 2
        (remark,) = (remark for remark in source.remarks if "validation" in remark)
        assert f"{source.spec.test_size:,} of {count:,}" in remark
        labels = Counter(torch.cat([labels for _, labels in islice(source.train(), count)]).tolist())
        assert len(labels) == classes
    with source_of(name, where, seed=4, **changes) as other:
        assert levels_of(other, other.test()) == held


def test_files_of_a_tree_keep_their_names_and_classes(root: Path) -> None:
    from resist_hvd.data.tree import find_images
    from resist_hvd.data.validation import list_images

    def files(index: Any, numbers: NDArray[np.int64] | range) -> list[tuple[str, int]]:
        return [(str(index.path(number)), int(index.labels[number])) for number in numbers]

    whole = find_images(root).train
    parts = list_images(DataSettings(name="imagenet", root=root, validation=SHARE))
    found = files(parts.train, range(len(parts.train))) + files(parts.test, range(len(parts.test)))
    assert sorted(found) == sorted(files(whole, range(len(whole))))
    assert all(Path(path).is_file() for path, _ in found)
    assert parts.train.classes == parts.test.classes == whole.classes


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_cannot_be_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"--data.validation is .*; give a number from 0 up to, but not, 1"):
        DataSettings(validation=share)
