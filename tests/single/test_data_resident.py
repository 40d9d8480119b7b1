"""The training stream and the test and calibration shares of a source whose images lie in memory."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from resist_hvd.data import Batch, Shard
from resist_hvd.data.memory.images import LabelledImages
from resist_hvd.data.memory.resident import ImageSet, ResidentSource
from resist_hvd.data.order import EpochOrder
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings

CPU = torch.device("cpu")


def image_set(train_size: int, test_size: int = 5, *, size: int = 4, padding: int = 1) -> ImageSet:
    """Random images, each of a class of its own, so that labels tell images apart."""
    generator = torch.Generator().manual_seed(7)

    def images(count: int, padding: int) -> LabelledImages:
        pixels = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
        return LabelledImages.of(pixels, torch.arange(count), padding=padding)

    return ImageSet(
        name="random",
        classes=tuple(str(number) for number in range(max(train_size, test_size))),
        train=images(train_size, padding),
        test=images(test_size, 0),
        mirrored=True,
    )


def workers(images: ImageSet, count: int, *, seed: int = 0, **changes: Any) -> list[ResidentSource]:
    return [
        ResidentSource(images, DataSettings(**changes), shard=Shard(rank=rank, size=count), seed=seed, device=CPU)
        for rank in range(count)
    ]


def draw(sources: list[ResidentSource], steps: int, *, samples: int = 0) -> list[Batch]:
    """The batches of all workers, step by step and in the order of ranks, once so many samples were drawn."""
    streams = [source.train(samples) for source in sources]
    return [next(stream) for _ in range(steps) for stream in streams]


def labels_of(batches: list[Batch]) -> list[int]:
    return [int(label) for _, labels in batches for label in labels]


def equal(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(images, other_images) and torch.equal(labels, other_labels)
        for (images, labels), (other_images, other_labels) in zip(left, right, strict=True)
    )


@given(train_size=st.integers(1, 30), batch_size=st.integers(1, 6), size=st.integers(1, 5), epochs=st.integers(1, 3))
def test_each_image_comes_once_an_epoch_counted_over_workers(
    train_size: int, batch_size: int, size: int, epochs: int
) -> None:
    assume(batch_size * size <= train_size)
    sources = workers(image_set(train_size), size, batch_size=batch_size)
    steps = -(-train_size * epochs // (batch_size * size))
    batches = draw(sources, steps)
    assert all(len(labels) == batch_size for _, labels in batches)
    seen = labels_of(batches)
    for epoch in range(epochs):
        assert sorted(seen[epoch * train_size : (epoch + 1) * train_size]) == list(range(train_size))


def test_workers_draw_what_the_order_says() -> None:
    sources = workers(image_set(10), 2, seed=3, batch_size=3)
    assert labels_of(draw(sources, 4)) == EpochOrder(10, seed=3).images(0, 24).tolist()


@given(data=st.data(), size=st.integers(1, 4), other_size=st.integers(1, 4), batch_size=st.integers(1, 5))
def test_neither_workers_nor_batch_size_change_what_happens_to_an_image(
    data: st.DataObject, size: int, other_size: int, batch_size: int
) -> None:
    images = image_set(21)
    samples = 3 * size * batch_size
    other_batch_size = data.draw(st.sampled_from([n for n in range(1, 61) if samples % (n * other_size) == 0] or [0]))
    assume(0 < other_batch_size * other_size <= 21)
    drawn = draw(workers(images, size, batch_size=batch_size), 3)
    other = draw(workers(images, other_size, batch_size=other_batch_size), samples // (other_size * other_batch_size))
    assert labels_of(drawn) == labels_of(other)
    assert torch.equal(torch.cat([images for images, _ in drawn]), torch.cat([images for images, _ in other]))


def test_augmentation_differs_between_epochs_and_seeds() -> None:
    images = image_set(8, size=16, padding=4)
    (source,) = workers(images, 1, batch_size=8)
    (other,) = workers(images, 1, seed=1, batch_size=8)
    batches = [*draw([source], 2), *draw([other], 1)]
    sorted_by_image = [pixels[labels.argsort()] for pixels, labels in batches]
    assert not torch.equal(sorted_by_image[0], sorted_by_image[1])
    assert not torch.equal(sorted_by_image[0], sorted_by_image[2])


def test_all_crops_come_about_as_often_and_half_are_mirrored() -> None:
    # One image whose pixels are all different, cropped from 3 x 3 places, mirrored or not: 18 outcomes.
    pixels = torch.arange(1, 17, dtype=torch.uint8).view(1, 4, 4, 1).expand(1, 4, 4, 3)
    images = ImageSet(
        name="one",
        classes=("a",),
        train=LabelledImages.of(pixels, torch.zeros(1), padding=1),
        test=LabelledImages.of(pixels, torch.zeros(1), padding=0),
        mirrored=True,
    )
    (source,) = workers(images, 1, batch_size=1)
    counts = Counter(tuple(pixels[0, 0].flatten().tolist()) for pixels, _ in draw([source], 3600))
    # Each has expectation 200 and standard deviation 14.
    assert len(counts) == 18
    assert all(140 < count < 260 for count in counts.values())


@pytest.mark.parametrize(
    ("flip", "mirrored", "outcomes"), [(None, True, 2), (None, False, 1), (False, True, 1), (True, False, 2)]
)
def test_the_flip_setting_overrides_the_data_sets_own(flip: bool | None, mirrored: bool, outcomes: int) -> None:
    generated = image_set(1, padding=0)
    images = ImageSet(name="one", classes=("0",), train=generated.train, test=generated.test, mirrored=mirrored)
    (source,) = workers(images, 1, batch_size=1, flip=flip)
    assert len({tuple(pixels.flatten().tolist()) for pixels, _ in draw([source], 40)}) == outcomes


def test_without_crop_and_flip_training_images_are_the_images() -> None:
    images = image_set(6, padding=0)
    (source,) = workers(images, 1, batch_size=6, flip=False)
    pixels, labels = next(source.train())
    ((plain, plain_labels),) = source.calibration()
    assert torch.equal(pixels[labels.argsort()], plain[plain_labels.argsort()])


@given(size=st.integers(1, 3), before=st.integers(0, 9), after=st.integers(1, 5))
def test_a_stream_resumed_equals_the_one_that_never_stopped(size: int, before: int, after: int) -> None:
    images = image_set(17)
    never_stopped = workers(images, size, batch_size=4)
    whole = draw(never_stopped, before + after)
    resumed = workers(images, size, batch_size=4)
    assert equal(draw(resumed, after, samples=before * size * 4), whole[before * size :])


def test_one_worker_draws_what_all_of_them_draw() -> None:
    sources = workers(image_set(30), 3, batch_size=4)
    whole = sources[1].train(shard=Shard(rank=0, size=1))
    assert equal([next(whole) for _ in range(12)], draw(sources, 4))


def test_another_number_of_workers_goes_on_with_the_same_order() -> None:
    images = image_set(48)
    seen = labels_of(draw(workers(images, 4, batch_size=3), 2))
    # None of the epoch's images is left out or comes twice.
    assert sorted(seen + labels_of(draw(workers(images, 2, batch_size=3), 4, samples=24))) == list(range(48))


@given(test_size=st.integers(1, 20), size=st.integers(1, 6), batch_size=st.integers(1, 7))
def test_shards_of_the_test_set_share_it_out_without_duplicates(test_size: int, size: int, batch_size: int) -> None:
    sources = workers(image_set(20, test_size), size, batch_size=1, test_batch_size=batch_size)
    shares = [list(source.test()) for source in sources]
    assert sorted(labels_of([batch for share in shares for batch in share])) == list(range(test_size))
    sizes = [sum(len(labels) for _, labels in share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for share in shares:
        assert all(len(labels) == batch_size for _, labels in share[:-1])
        assert all(1 <= len(labels) <= batch_size for _, labels in share[-1:])
    # Any worker can see any shard.
    for rank in range(size):
        assert equal(list(sources[0].test(Shard(rank=rank, size=size))), shares[rank])


@given(train_size=st.integers(6, 20), size=st.integers(1, 6), calibration=st.integers(1, 25))
def test_the_calibration_set_is_fixed_unaugmented_and_shared_out(train_size: int, size: int, calibration: int) -> None:
    images = image_set(train_size)
    sources = workers(images, size, batch_size=1, calibration_images=calibration, test_batch_size=4)
    draw(sources, 2)  # training leaves it alone
    batches = [batch for source in sources for batch in source.calibration()]
    chosen = labels_of(batches)
    assert len(chosen) == len(set(chosen)) == min(calibration, train_size)
    (alone,) = workers(images, 1, seed=9, batch_size=1, calibration_images=calibration, test_batch_size=100)
    ((pixels, labels),) = alone.calibration()
    assert sorted(labels.tolist()) == sorted(chosen)
    mean, std = images.train.channel_statistics()
    expected = ((images.train.images[labels].double() - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(pixels.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_calibration_set_comes_from_all_over_a_training_set_sorted_by_class() -> None:
    (source,) = workers(image_set(200), 1, batch_size=1, calibration_images=40)
    chosen = labels_of(list(source.calibration()))
    assert Counter(label // 50 for label in chosen).keys() == {0, 1, 2, 3}


def test_the_test_set_is_normalised_by_the_training_set() -> None:
    images = image_set(9, 4)
    (source,) = workers(images, 1, batch_size=1)
    ((pixels, labels),) = source.test()
    mean, std = images.train.channel_statistics()
    expected = ((images.test.images.double() - mean) / std).permute(0, 3, 1, 2)
    assert labels.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(pixels.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_spec_describes_the_whole_data_set() -> None:
    source = workers(image_set(30, 7, size=6), 3, batch_size=2)[2]
    assert (source.spec.name, source.spec.channels, source.spec.image_size) == ("random", 3, 6)
    assert (source.spec.train_size, source.spec.test_size, len(source.spec.classes)) == (30, 7, 30)


def test_fewer_images_than_one_batch_of_all_workers_are_refused() -> None:
    workers(image_set(12), 4, batch_size=3)
    with pytest.raises(
        UserError, match=r"random has 11 training images, fewer than the 12 that 4 workers draw"
    ) as info:
        workers(image_set(11), 4, batch_size=3)
    assert "smaller --data.batch_size" in info.value.mend


def test_a_source_closes_at_the_end_of_a_with_statement() -> None:
    (source,) = workers(image_set(12), 1, batch_size=3)
    with source as entered:
        assert entered is source
