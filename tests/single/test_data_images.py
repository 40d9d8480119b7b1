"""Batches out of memory: crops are windows of the padded images, mirrored or not, and normalised."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from resist_hvd.data.memory.images import BatchMaker, LabelledImages


def random_images(count: int, *, size: int, channels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, size, size, channels), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count)


def unchanged(store: LabelledImages) -> BatchMaker:
    """Batches with pixels from 0 to 255."""
    channels = store.channels
    return BatchMaker(store, mean=torch.zeros(channels).double(), std=torch.ones(channels).double())


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@given(
    size=st.integers(1, 7),
    padding=st.integers(0, 3),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 1000),
    batch=st.integers(1, 9),
)
def test_a_crop_is_a_window_of_the_padded_image(size: int, padding: int, channels: int, seed: int, batch: int) -> None:
    count = 5
    images, labels = random_images(count, size=size, channels=channels, seed=seed)
    store = LabelledImages.of(images, labels, padding=padding)
    random = np.random.default_rng(seed)
    chosen = random.integers(0, count, batch)
    top, left = random.integers(0, 2 * padding + 1, (2, batch))
    mirrored = random.random(batch) < 0.5
    crops, crop_labels = unchanged(store).augmented(chosen, top, left, mirrored)

    padded = torch.nn.functional.pad(images.permute(0, 3, 1, 2).float(), [padding] * 4)
    for crop, label, image, y, x, mirror in zip(crops, crop_labels, chosen, top, left, mirrored, strict=True):
        window = padded[image, :, y : y + size, x : x + size]
        assert torch.equal(crop, window.flip(2) if mirror else window)
        assert label == image


@given(size=st.integers(1, 7), padding=st.integers(0, 3), channels=st.sampled_from([1, 3]))
def test_plain_images_are_whole(size: int, padding: int, channels: int) -> None:
    images, labels = random_images(6, size=size, channels=channels)
    store = LabelledImages.of(images, labels, padding=padding)
    chosen = np.array([5, 0, 3])
    plain, plain_labels = unchanged(store).plain(chosen)
    assert torch.equal(plain, images[chosen].permute(0, 3, 1, 2).float())
    assert plain_labels.tolist() == [5, 0, 3]


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_have_the_promised_types_and_layout(channels: int) -> None:
    store = LabelledImages.of(*random_images(4, size=6, channels=channels), padding=1)
    zeros = np.zeros(3, dtype=np.int64)
    for images, labels in (
        unchanged(store).plain(zeros),
        unchanged(store).augmented(zeros, zeros, zeros, np.array([True, False, True])),
        unchanged(store).augmented(zeros, zeros, zeros, np.array([False, False, False])),
    ):
        assert images.shape == (3, channels, 6, 6)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.shape == (3,)
        assert labels.dtype == torch.int64


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("count", [1, 150])
def test_statistics_are_those_of_the_images_without_their_border(count: int, padding: int) -> None:
    images, labels = random_images(count, size=32, channels=3)
    images[..., 2] //= 4
    mean, std = LabelledImages.of(images, labels, padding=padding).channel_statistics()
    pixels = images.double()
    torch.testing.assert_close(mean, pixels.mean(dim=(0, 1, 2)), rtol=1e-14, atol=0)
    torch.testing.assert_close(std, pixels.std(dim=(0, 1, 2), correction=0), rtol=1e-12, atol=0)


def test_normalised_training_images_have_mean_0_and_std_1() -> None:
    store = LabelledImages.of(*random_images(50, size=8, channels=3), padding=2)
    mean, std = store.channel_statistics()
    images, _ = BatchMaker(store, mean=mean, std=std).plain(np.arange(50))
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(images.std(dim=(0, 2, 3), correction=0), torch.ones(3), rtol=1e-6, atol=0)


def test_the_border_is_black_before_normalisation() -> None:
    store = LabelledImages.of(torch.full((1, 4, 4, 3), 200, dtype=torch.uint8), torch.zeros(1), padding=2)
    mean, std = torch.tensor([100.0, 50.0, 20.0]).double(), torch.tensor([10.0, 20.0, 40.0]).double()
    corner = np.zeros(1, dtype=np.int64)
    images, _ = BatchMaker(store, mean=mean, std=std).augmented(corner, corner, corner, np.array([False]))
    torch.testing.assert_close(images[0, :, 0, 0], torch.tensor([-10.0, -2.5, -0.5]))
    torch.testing.assert_close(images[0, :, 3, 3], torch.tensor([10.0, 7.5, 4.5]))


def test_a_channel_of_one_value_is_only_centred() -> None:
    store = LabelledImages.of(torch.full((2, 4, 4, 3), 7, dtype=torch.uint8), torch.zeros(2), padding=0)
    mean, std = store.channel_statistics()
    images, _ = BatchMaker(store, mean=mean, std=std).plain(np.arange(2))
    assert torch.equal(images, torch.zeros(2, 3, 4, 4))


@pytest.mark.usefixtures("restore_threads")
def test_any_number_of_threads_makes_the_same_bits() -> None:
    # Large enough for PyTorch to share every operation out, and odd, so that shares end anywhere.
    images, labels = random_images(300, size=31, channels=3)
    random = np.random.default_rng(1)
    chosen = random.integers(0, 300, 257)
    top, left = random.integers(0, 7, (2, 257))
    mirrored = random.random(257) < 0.5
    batches = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        store = LabelledImages.of(images, labels, padding=3)
        mean, std = store.channel_statistics()
        batches.append(BatchMaker(store, mean=mean, std=std).augmented(chosen, top, left, mirrored)[0])
    assert all(torch.equal(batches[0], other) for other in batches[1:])
