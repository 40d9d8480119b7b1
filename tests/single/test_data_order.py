"""The order of training images, and their random numbers, as functions of seed and position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resist_hvd.data.order import EpochOrder, fixed_choice, sample_words

seeds = st.integers(min_value=0, max_value=2**64 - 1)


@given(size=st.integers(1, 40), seed=seeds, epoch=st.integers(0, 5))
def test_every_epoch_has_each_image_once(size: int, seed: int, epoch: int) -> None:
    assert sorted(EpochOrder(size, seed).images(epoch * size, size)) == list(range(size))


@given(size=st.integers(1, 20), seed=seeds, cuts=st.lists(st.integers(0, 50), max_size=6))
def test_pieces_of_the_order_are_the_whole_wherever_it_is_cut(size: int, seed: int, cuts: list[int]) -> None:
    whole = EpochOrder(size, seed).images(0, sum(cuts))
    order = EpochOrder(size, seed)
    starts = np.cumsum([0, *cuts])
    pieces = [order.images(int(start), count) for start, count in zip(starts, cuts, strict=False)]
    assert np.concatenate([np.empty(0, dtype=np.int64), *pieces]).tolist() == whole.tolist()


def test_epochs_and_seeds_differ() -> None:
    size = 100
    permutations = {tuple(EpochOrder(size, seed).images(epoch * size, size)) for seed in range(4) for epoch in range(4)}
    assert len(permutations) == 16


def test_epochs_are_not_each_other_shifted() -> None:
    size = 200
    first, second = (np.argsort(EpochOrder(size, seed=0).images(epoch * size, size)) for epoch in (0, 1))
    for shift in range(-20, 21):
        here, there = slice(max(0, shift), size + min(0, shift)), slice(max(0, -shift), size - max(0, shift))
        # The correlation of 180 independent pairs has a standard deviation of 0.075.
        assert abs(np.corrcoef(first[here], second[there])[0, 1]) < 0.35


def test_augmentation_does_not_follow_the_order() -> None:
    words = sample_words(5, 0, 25).ravel()
    assert np.argsort(words).tolist() != EpochOrder(100, seed=5).images(0, 100).tolist()


def test_all_permutations_are_about_as_frequent() -> None:
    order = EpochOrder(3, seed=0)
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(6000):
        permutation = tuple(order.images(epoch * 3, 3).tolist())
        counts[permutation] = counts.get(permutation, 0) + 1
    # Six permutations of expectation 1000 and standard deviation 29.
    assert len(counts) == 6
    assert all(850 < count < 1150 for count in counts.values())


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    assert EpochOrder(10, seed=0).images(0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert fixed_choice(10, 10).tolist() == [6, 7, 2, 9, 1, 3, 5, 0, 4, 8]


def test_what_the_order_gives_out_is_the_callers_own() -> None:
    order = EpochOrder(10, seed=0)
    order.images(2, 3)[:] = 0
    assert sorted(order.images(0, 10)) == list(range(10))


def test_an_order_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        EpochOrder(0, seed=0)


@given(seed=seeds, first=st.integers(0, 2**40), count=st.integers(1, 20), skip=st.integers(0, 19))
def test_a_samples_random_words_do_not_depend_on_the_batch_it_is_in(
    seed: int, first: int, count: int, skip: int
) -> None:
    skip = min(skip, count - 1)
    words = sample_words(seed, first, count)
    assert words.shape == (count, 4)
    assert np.array_equal(words[skip:], sample_words(seed, first + skip, count - skip))


def test_random_words_are_independent_across_samples_purposes_and_seeds() -> None:
    words = np.concatenate([sample_words(seed, 0, 1000).ravel() for seed in range(3)])
    assert len(np.unique(words)) == len(words)
    # The mean of 12,000 uniform numbers has a standard deviation of 0.0026.
    assert abs((words / 2.0**64).mean() - 0.5) < 0.011


@given(size=st.integers(0, 50), count=st.integers(1, 60))
def test_a_fixed_choice_is_of_different_images(size: int, count: int) -> None:
    choice = fixed_choice(size, count).tolist()
    assert len(set(choice)) == len(choice) == min(size, count)
    assert set(choice) <= set(range(size))
