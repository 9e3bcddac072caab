from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gigavim.errors import NoSpacingError, SourceError
from gigavim.geometry import Level, Spacing, Window
from gigavim.sources import Band, Pixels, Plane
from gigavim.sources.file_source import FileSource, Options

HEIGHT, WIDTH = 61, 83
ONE_UM = Spacing(1.0, 1.0, "µm", "user")
ratios = st.one_of(st.integers(1, 20).map(float), st.floats(1, 20))


@dataclass(frozen=True, eq=False, kw_only=True)
class ArraySource(FileSource):
    """A pyramid in memory, which keeps what was asked of it."""

    arrays: tuple[NDArray[Any], ...]
    there: NDArray[np.bool_] | None = None
    """Which pixels of level 0 are valid; all if None."""
    asked: list[tuple[int, Window]] = field(default_factory=list)

    def _read(self, level: int, window: Window) -> Pixels:
        self.asked.append((level, window))
        part = np.s_[window.y : window.y + window.height, window.x : window.x + window.width]
        values = self.arrays[level][part].copy()
        valid = np.ones(values.shape[:2], np.bool_) if self.there is None else self.there[part]
        values[~valid] = 0
        return Pixels(values, valid)


def source(
    *arrays: NDArray[Any],
    there: NDArray[np.bool_] | None = None,
    spacing: Spacing | None = ONE_UM,
) -> ArraySource:
    height0, width0 = arrays[0].shape[:2]
    levels = tuple(Level(*a.shape[:2], height0 / a.shape[0], width0 / a.shape[1]) for a in arrays)
    bands = tuple(Band(f"band {i}") for i in range(arrays[0].shape[2]))
    return ArraySource(
        "memory", Options(), "slide", "numpy", levels, bands, arrays[0].dtype, spacing,
        None, None, {}, arrays=arrays, there=there,
    )  # fmt: skip


def noise(dtype: type[np.generic] = np.float32, bands: int = 2) -> NDArray[Any]:
    return (np.random.default_rng(0).random((HEIGHT, WIDTH, bands)) * 255).astype(dtype)


def whole(plane: Plane) -> Pixels:
    return plane.read(Window(0, 0, plane.height, plane.width))


def overlaps(count: int, size: int, ratio: float) -> NDArray[np.float64]:
    """How much of each of ``size`` pixels lies in each of ``count`` pixels ``ratio`` as long."""
    low = np.arange(count)[:, None] * ratio
    pixel = np.arange(size)
    return np.clip(np.minimum(pixel + 1, low + ratio) - np.maximum(pixel, low), 0, None)


@given(ratio_y=ratios, ratio_x=ratios)
def test_a_pixel_is_the_mean_of_the_area_under_it(ratio_y: float, ratio_x: float) -> None:
    image = noise()
    plane = Plane(source(image), 0, ratio_y, ratio_x)
    pixels = whole(plane)
    rows = overlaps(plane.height, HEIGHT, ratio_y)
    columns = overlaps(plane.width, WIDTH, ratio_x)
    area = rows.sum(1)[:, None] * columns.sum(1)
    expected = np.einsum("iy,yxb,jx->ijb", rows, image, columns, optimize=True) / area[..., None]
    # Half of a pixel's area and less than a rounding error more may fall either way.
    share = area / (ratio_y * ratio_x)
    clear = np.abs(share - 0.5) > 1e-5
    assert np.array_equal(pixels.valid[clear], (share >= 0.5)[clear])
    np.testing.assert_allclose(
        pixels.values[pixels.valid], expected[pixels.valid], rtol=1e-5, atol=1e-3
    )
    assert not pixels.values[~pixels.valid].any()


@given(
    ratio_y=ratios,
    ratio_x=ratios,
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
    is_holed=st.booleans(),
    data=st.data(),
)
def test_a_pixel_is_the_same_to_the_last_bit_whichever_window_reads_it(
    ratio_y: float, ratio_x: float, dtype: type[np.generic], is_holed: bool, data: st.DataObject
) -> None:
    there = np.ones((HEIGHT, WIDTH), np.bool_)
    if is_holed:
        there[30:] = np.random.default_rng(1).random((HEIGHT - 30, WIDTH)) > 0.2
    plane = Plane(source(noise(dtype), there=there), 0, ratio_y, ratio_x)
    y = data.draw(st.integers(0, plane.height - 1), "y")
    x = data.draw(st.integers(0, plane.width - 1), "x")
    height = data.draw(st.integers(1, plane.height - y), "height")
    width = data.draw(st.integers(1, plane.width - x), "width")
    part, everything = plane.read(Window(y, x, height, width)), whole(plane)
    there_too = np.s_[y : y + height, x : x + width]
    assert np.array_equal(part.values, everything.values[there_too])
    assert np.array_equal(part.valid, everything.valid[there_too])


@given(ratio_y=ratios, ratio_x=ratios)
def test_an_even_image_stays_even(ratio_y: float, ratio_x: float) -> None:
    plane = Plane(source(np.full((HEIGHT, WIDTH, 1), 201, np.uint8)), 0, ratio_y, ratio_x)
    pixels = whole(plane)
    assert (pixels.values[pixels.valid] == 201).all()


def test_what_is_not_valid_does_not_colour_its_neighbours() -> None:
    image = np.full((4, 8, 1), 100, np.uint16)
    there = np.ones((4, 8), np.bool_)
    there[0, 0] = there[0:3, 2:4] = there[:, 4:6] = False
    pixels = whole(Plane(source(image, there=there), 0, 2.0, 2.0))
    assert pixels.valid.tolist() == [[True, False, False, True], [True, True, False, True]]
    assert pixels.values[pixels.valid].tolist() == [[100.0]] * 5
    assert not pixels.values[~pixels.valid].any()


@pytest.mark.parametrize(
    ("dtype", "resampled"),
    [(np.uint8, np.uint8), (np.uint16, np.float32), (np.float64, np.float32)],
)
def test_eight_bits_stay_eight_and_other_means_are_float(
    dtype: type[np.generic], resampled: type[np.generic]
) -> None:
    image = noise(dtype)
    assert whole(Plane(source(image), 0, 3.0, 3.0)).values.dtype == resampled
    native = whole(Plane(source(image), 0, 1.0, 1.0))
    assert native.values.dtype == dtype
    assert np.array_equal(native.values, image)


@pytest.mark.parametrize(
    ("spacing", "level"),
    [(1.0, 0), (3.9, 0), (4.0, 1), (4.0000001, 1), (15.9, 1), (16.0, 2), (90, 2)],
)
def test_the_nearest_finer_level_is_read(spacing: float, level: int) -> None:
    pyramid = [np.zeros((side, side, 1), np.uint8) for side in (160, 40, 10)]
    assert Plane.at(source(*pyramid), spacing).level == level


def test_a_level_that_has_the_spacing_is_read_as_it_stands() -> None:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 60_000, (20, 30, 2), np.uint16)
    own = Spacing(0.2499, 0.2499, "µm", "user")
    fine = np.zeros((80, 120, 2), np.uint16)
    pixels = whole(Plane.at(source(fine, coarse, spacing=own), 0.9996))
    assert np.array_equal(pixels.values, coarse)
    assert pixels.values.dtype == np.uint16


def test_pixels_that_are_not_square_become_square() -> None:
    image = np.arange(12 * 8, dtype=np.float32).reshape(12, 8, 1)
    plane = Plane.at(source(image, spacing=Spacing(0.5, 1.0, "µm", "user")), 2.0)
    assert (plane.height, plane.width) == (3, 4)
    expected = image.reshape(3, 4, 4, 2, 1).mean((1, 3))
    np.testing.assert_allclose(whole(plane).values, expected, rtol=1e-6)


def test_a_window_beyond_the_image_is_not_valid_there() -> None:
    plane = Plane(source(np.full((20, 20, 1), 9, np.uint8)), 0, 4.0, 4.0)
    pixels = plane.read(Window(-2, 3, 4, 4))
    assert pixels.valid.tolist() == [[False] * 4] * 2 + [[True, True, False, False]] * 2


def test_a_window_of_any_size_is_read_in_parts_of_bounded_size() -> None:
    image = (np.arange(9000)[:, None, None] % 251 + np.zeros((1, 40, 1))).astype(np.uint8)
    held = source(image)
    plane = Plane(held, 0, 2.5, 2.5)
    pixels = whole(plane)
    assert max(window.height for _, window in held.asked) <= 4098
    pieces = [plane.read(Window(y, 0, 100, plane.width)).values for y in range(0, 3600, 100)]
    assert np.array_equal(pixels.values, np.concatenate(pieces))


def test_a_spacing_finer_than_the_image_is_refused_with_the_finest_there_is() -> None:
    with pytest.raises(SourceError, match=r"memory: asked for 0.5 µm/px.*--spacing 1 or coarser"):
        Plane.at(source(noise()), 0.5)


def test_a_spacing_too_coarse_to_hold_a_pixel_of_is_refused() -> None:
    with pytest.raises(SourceError, match=r"memory: asked for 5000 µm/px.*finer --spacing"):
        Plane.at(source(noise()), 5000)


def test_without_a_spacing_the_message_names_the_fix() -> None:
    lost = source(noise(), spacing=None)
    with pytest.raises(NoSpacingError, match=r"memory .* --source-spacing"):
        Plane.at(lost, 1.0)
    assert np.array_equal(whole(Plane.at(lost)).values, noise())
