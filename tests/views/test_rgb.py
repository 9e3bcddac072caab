from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gigavim.sources.source import RGB, Band, Pixels
from gigavim.views.rgb import to_rgb


def valid(values: NDArray[Any], missing: tuple[int, int] | None = None) -> Pixels:
    there = np.ones(values.shape[:2], np.bool_)
    if missing is not None:
        there[missing] = False
    return Pixels(values, there)


def test_an_rgb_image_stays_as_it_is_and_is_white_where_it_is_not_valid() -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    picture = to_rgb(valid(values, missing=(1, 2)), RGB)
    assert picture[1, 2].tolist() == [255, 255, 255]
    picture[1, 2] = values[1, 2]
    np.testing.assert_array_equal(picture, values)


def test_bands_are_found_by_wavelength() -> None:
    bands = (Band("B02", 490), Band("B03", 560), Band("B04", 665), Band("B08", 842))
    values = np.zeros((1, 100, 4), np.uint16)
    values[0, :, 2] = np.arange(100) * 30
    picture = to_rgb(valid(values), bands)
    assert picture[0, -1].tolist() == [255, 0, 0]


@pytest.mark.parametrize("count", [1, 2])
def test_few_bands_are_shown_in_grey(count: int) -> None:
    values = np.linspace(-1, 1, 100 * count, dtype=np.float32).reshape(1, 100, count)
    picture = to_rgb(valid(values), [Band(f"band {index}") for index in range(count)])
    assert (picture == picture[..., :1]).all()
    assert (picture.min(), picture.max()) == (0, 255)


def test_a_fill_of_zeros_does_not_flatten_the_picture() -> None:
    values = np.zeros((10, 10, 1), np.uint16)
    values[5:, :, 0] = np.arange(9_000, 14_000, 100).reshape(5, 10)
    picture = to_rgb(valid(values), [Band("band 1")])
    assert picture[5, 0, 0] < 20
    assert picture[9, 9, 0] > 235


@pytest.mark.parametrize("value", [0, 7])
def test_a_picture_of_one_value_or_of_nothing_is_no_error(value: int) -> None:
    values = np.full((3, 3, 1), value, np.uint16)
    assert to_rgb(valid(values), [Band("band 1")]).shape == (3, 3, 3)
    nothing = Pixels(values, np.zeros((3, 3), np.bool_))
    assert (to_rgb(nothing, [Band("band 1")]) == 255).all()
