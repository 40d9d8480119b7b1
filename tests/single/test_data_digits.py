"""The embedded data set: real digits, whole, split the same way every time."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from resist_hvd.data import DataSource, Shard, load
from resist_hvd.data.memory.digits import read
from resist_hvd.settings.data import DataSettings


def digits(**settings: int) -> DataSource:
    return load(DataSettings(**settings), shard=Shard(rank=0, size=1), seed=0, device=torch.device("cpu"))


def test_the_digits_are_the_default_data() -> None:
    spec = digits().spec
    assert spec.name == "digits"
    assert spec.classes == tuple("0123456789")
    assert (spec.channels, spec.image_size, spec.train_size, spec.test_size) == (1, 32, 1437, 360)


def test_train_and_test_are_all_digits_each_once() -> None:
    images = read(DataSettings(image_size=8, crop_padding=0))
    ours = [
        (tuple(pixels.flatten().tolist()), int(label))
        for half in (images.train, images.test)
        for pixels, label in zip(half.images, half.labels, strict=True)
    ]
    original = load_digits()
    # At their own size they are scaled in brightness alone, from 0 to 16 to 0 to 255, and round the same everywhere.
    as_bytes = np.rint(original.images * 255 / 16).astype(int)
    theirs = [
        (tuple(pixels.ravel().tolist()), int(label)) for pixels, label in zip(as_bytes, original.target, strict=True)
    ]
    assert sorted(ours) == sorted(theirs)


def test_the_split_is_stratified_and_fixed() -> None:
    first, second = read(DataSettings()), read(DataSettings())
    assert torch.equal(first.test.padded, second.test.padded)
    assert torch.equal(first.train.padded, second.train.padded)
    per_class = torch.bincount(first.test.labels)
    of_all = torch.bincount(torch.cat([first.train.labels, first.test.labels]))
    assert ((per_class - of_all * 360 / 1797).abs() <= 1).all()


def test_the_split_is_that_of_scikit_learn() -> None:
    original = load_digits()
    train, test = train_test_split(
        np.arange(1797), test_size=360, stratify=original.target, shuffle=True, random_state=0
    )
    images = read(DataSettings())
    assert torch.equal(images.train.labels, torch.from_numpy(original.target[train]))
    assert torch.equal(images.test.labels, torch.from_numpy(original.target[test]))
    as_bytes = torch.from_numpy(np.rint(original.images * 255 / 16).astype(np.uint8))[..., None]
    small = read(DataSettings(image_size=8, crop_padding=0))
    assert torch.equal(small.train.images, as_bytes[train])
    assert torch.equal(small.test.images, as_bytes[test])


def test_the_scaled_up_digits_look_like_the_small_ones() -> None:
    small, large = read(DataSettings(image_size=8, crop_padding=0)), read(DataSettings())
    shrunk = torch.nn.functional.avg_pool2d(large.train.images[..., 0].float(), 4)
    difference = shrunk - small.train.images[..., 0].float()
    # Bilinear scaling blurs strokes; what it may not do is shift, mirror or stretch them.
    assert torch.corrcoef(torch.stack([shrunk.flatten(), small.train.images.float().flatten()]))[0, 1] > 0.95
    assert difference.mean().abs() < 1


def test_digits_are_never_mirrored_by_default() -> None:
    source = digits(crop_padding=0, batch_size=1437)
    images, labels = next(source.train())
    order = {tuple(image.flatten().tolist()) for image in images}
    plain = digits(test_batch_size=1437, calibration_images=1437)
    ((originals, original_labels),) = plain.calibration()
    assert order == {tuple(image.flatten().tolist()) for image in originals}
    assert sorted(labels.tolist()) == sorted(original_labels.tolist())


def test_the_crop_can_be_set() -> None:
    assert read(DataSettings()).train.padding == 2
    assert read(DataSettings(crop_padding=5)).train.padding == 5
    assert read(DataSettings(crop_padding=5)).test.padding == 0
