"""Random and central windows: torchvision's rules, and what must hold of any window."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from resist_hvd.data.files.windows import WORDS_PER_WINDOW, Draws, middle_windows, random_windows
from resist_hvd.data.order import sample_words

sides = st.integers(1, 700)


def draws_of(seed: int, count: int, **options: float | bool) -> Draws:
    words = sample_words(seed, 0, count, each=WORDS_PER_WINDOW)
    return Draws.of(words, **{"least_area": 0.08, "may_mirror": True, **options})  # type: ignore[arg-type]


def windows_of(draws: Draws, height: int, width: int) -> NDArray[np.int64]:
    count = len(draws.places)
    return random_windows(draws, np.full(count, height), np.full(count, width))


@given(height=sides, width=sides, seed=st.integers(0, 99))
def test_a_window_lies_inside_and_is_not_empty(height: int, width: int, seed: int) -> None:
    top, left, rows, columns = windows_of(draws_of(seed, 20), height, width).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (rows >= 1).all()
    assert (columns >= 1).all()
    assert (top + rows <= height).all()
    assert (left + columns <= width).all()


@given(height=sides, width=sides, seed=st.integers(0, 99))
def test_the_same_draws_as_torchvision_make_the_same_windows(height: int, width: int, seed: int) -> None:
    """Torchvision's own function, given these numbers in the order in which it draws its own."""
    draws = draws_of(seed, 6)
    image = torch.empty(3, height, width)
    transform = v2.RandomResizedCrop(8)
    for number, window in enumerate(windows_of(draws, height, width).tolist()):
        area = np.sqrt(draws.widths_squared[number] * draws.heights_squared[number])
        log_ratio = np.log(draws.widths_squared[number] / draws.heights_squared[number]) / 2
        uniforms = [torch.tensor([value]).double() for pair in zip(area, log_ratio, strict=True) for value in pair]
        places = iter(draws.places[number].tolist())

        class Drawn:
            """Stands for an empty tensor that is filled with what `uniforms` holds next."""

            def uniform_(self, low: float, high: float, uniforms: list[torch.Tensor] = uniforms) -> torch.Tensor:
                return uniforms.pop(0).clamp(low, high)

        def integer(low: int, high: int, size: tuple[int], places: object = places) -> torch.Tensor:
            return torch.tensor([low + int(next(places) * (high - low))])  # type: ignore[call-overload]

        with mock.patch("torch.empty", return_value=Drawn()), mock.patch("torch.randint", integer):
            expected = transform.make_params([image])
        theirs = [expected[name] for name in ("top", "left", "height", "width")]
        # A number may fall on either side of a half, where it is rounded.
        assert np.abs(np.array(theirs) - window).max() <= 1


def test_windows_are_about_as_often_of_any_area_and_place() -> None:
    top, left, rows, columns = windows_of(draws_of(3, 4000), 400, 400).T
    area = rows * columns / 400**2
    assert area.min() == pytest.approx(0.08, abs=0.01)
    # Uniform from 0.08 to 1, less some of the largest, which do not fit with every ratio.
    assert 0.45 < area.mean() < 0.54
    assert 0.7 < (columns / rows).min() < 0.76
    assert 1.3 < (columns / rows).max() < 1.4
    spare = (rows < 360) & (columns < 360)
    for corner, side in ((top, rows), (left, columns)):
        assert (corner[spare] / (400 - side[spare])).mean() == pytest.approx(0.5, abs=0.03)


def test_half_are_mirrored_where_they_may_be() -> None:
    assert 450 < draws_of(1, 1000).mirrored.sum() < 550
    assert not draws_of(1, 1000, may_mirror=False).mirrored.any()


@pytest.mark.parametrize(("height", "width", "expected"), [(1000, 10, (493, 0, 13, 10)), (10, 1000, (0, 493, 10, 13))])
def test_where_no_try_fits_it_is_the_middle(height: int, width: int, expected: tuple[int, ...]) -> None:
    draws = draws_of(0, 1, least_area=0.9)
    assert windows_of(draws, height, width).tolist() == [list(expected)]


def test_colours_go_either_way() -> None:
    colours = draws_of(2, 1000).colours
    assert colours.min() >= -1
    assert colours.max() < 1
    assert np.abs(colours.mean(axis=0)).max() < 0.1


def test_draws_do_not_depend_on_the_batch() -> None:
    words = sample_words(9, 0, 8, each=WORDS_PER_WINDOW)
    assert np.array_equal(words[5:], sample_words(9, 5, 3, each=WORDS_PER_WINDOW))
    with pytest.raises(ValueError, match="multiples of 4, not 6"):
        sample_words(9, 0, 1, each=6)


@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 60))
def test_scaling_and_cutting_the_middle_is_torchvisions(height: int, width: int, size: int) -> None:
    (scaled,), (corner,) = middle_windows(size, size, np.array([[height, width]]))
    resized = functional.resize(torch.zeros(1, height, width, dtype=torch.uint8), [size], v2.InterpolationMode.NEAREST)
    assert tuple(scaled) == resized.shape[1:]
    numbered = torch.arange(scaled.prod()).view(1, *scaled)
    assert functional.center_crop(numbered, [size])[0, 0, 0] == corner[0] * scaled[1] + corner[1]
