from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigavim.geometry import Grid, Spacing, Window, level_downsample

sizes = st.integers(1, 5000)


@given(size=st.integers(64, 200_000), factor=st.sampled_from([2, 4, 16, 32]))
def test_a_level_that_was_rounded_down_or_up_still_has_a_whole_downsample(
    size: int, factor: int
) -> None:
    if size // factor > factor:
        assert level_downsample(size, size // factor) == factor
        assert level_downsample(size, -(-size // factor)) == factor


def test_a_level_of_another_shape_keeps_its_fractional_downsample() -> None:
    assert level_downsample(1000, 300) == pytest.approx(10 / 3)


@pytest.mark.parametrize("side", [0.0, -1.0, float("nan"), float("inf")])
def test_a_spacing_is_positive_and_finite(side: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Spacing(side, 1.0, "µm", "test")


@given(height=sizes, width=sizes, patch=st.integers(1, 64), ratio=st.floats(0.5, 9))
def test_a_grid_covers_the_image_and_no_patch_lies_wholly_outside(
    height: int, width: int, patch: int, ratio: float
) -> None:
    grid = Grid.over(height, width, patch=patch, ratio_y=ratio, ratio_x=ratio)
    hair = 1e-5 * patch * ratio
    assert grid.rows * grid.cell_y >= height - hair
    assert grid.columns * grid.cell_x >= width - hair
    assert grid.rows == 1 or (grid.rows - 1) * grid.cell_y < height
    assert grid.columns == 1 or (grid.columns - 1) * grid.cell_x < width


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), side=st.integers(1, 50))
def test_blocks_cover_each_patch_once(rows: int, columns: int, side: int) -> None:
    grid = Grid(rows, columns, 16, 16, 1.0, 1.0)
    seen = np.zeros(grid.shape, int)
    for block in grid.blocks(side, side):
        seen[block.slices] += 1
    assert (seen == 1).all()


def test_a_window_of_overlapping_patches_ends_where_the_last_patch_ends() -> None:
    grid = Grid.over(224, 224, patch=16, stride=8)
    assert grid.window(0, 0, 27, 27) == Window(0, 0, 224, 224)


def test_coordinates_are_x_then_y_in_level_0_pixels() -> None:
    grid = Grid.over(1000, 1000, patch=16, ratio_y=2.0, ratio_x=3.0)
    assert grid.coords(np.array([[1, 2]])).tolist() == [[2 * 16 * 3, 1 * 16 * 2]]


def test_coordinates_do_not_drift_at_a_fractional_ratio() -> None:
    ratio = 8 / 0.499
    grid = Grid.over(92_160, 103_680, patch=16, ratio_y=ratio, ratio_x=ratio)
    last = np.array([[grid.rows - 1, grid.columns - 1]])
    x, y = grid.coords(last)[0]
    assert abs(x - (grid.columns - 1) * 16 * ratio) <= 0.5
    assert abs(y - (grid.rows - 1) * 16 * ratio) <= 0.5
