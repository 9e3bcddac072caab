from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gigavim.geometry import Window
from gigavim.sources.nesting import Stored, enlarge

RANDOM = np.random.default_rng(0)
COARSE = RANDOM.normal(size=(2, 7, 9))
SEEN = RANDOM.random((7, 9)) > 0.3


def read(window: Window) -> Stored:
    there = np.s_[window.y : window.y + window.height, window.x : window.x + window.width]
    assert 0 <= window.y <= 7 - window.height
    assert 0 <= window.x <= 9 - window.width
    return np.where(SEEN[there], COARSE[:, *there], 0), SEEN[there]


def read_without_holes(window: Window) -> Stored:
    there = np.s_[window.y : window.y + window.height, window.x : window.x + window.width]
    return COARSE[:, *there], np.ones((window.height, window.width), np.bool_)


def whole(times: int, *, is_smooth: bool = True) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    window = Window(0, 0, 7 * times, 9 * times)
    return enlarge(read, (7, 9), times, window, is_smooth=is_smooth, keeps_dtype=True)


@pytest.mark.parametrize("times", [2, 3, 6])
def test_bilinear_is_that_of_torch(times: int) -> None:
    values, valid = enlarge(
        read_without_holes, (7, 9), times, Window(0, 0, 7 * times, 9 * times),
        is_smooth=True, keeps_dtype=True,
    )  # fmt: skip
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(COARSE)[None], scale_factor=times, mode="bilinear", align_corners=False
    )
    assert valid.all()
    np.testing.assert_allclose(values, expected[0].numpy(), atol=1e-12)


@pytest.mark.parametrize("times", [2, 3, 6])
def test_only_valid_pixels_are_mixed(times: int) -> None:
    values, valid = whole(times)
    assert np.array_equal(valid, np.repeat(np.repeat(SEEN, times, 0), times, 1))
    known = torch.nn.functional.interpolate(
        torch.from_numpy(np.stack([*(COARSE * SEEN), SEEN]))[None],
        scale_factor=times, mode="bilinear", align_corners=False,
    )[0].numpy()  # fmt: skip
    np.testing.assert_allclose(
        values[:, valid], (known[:2] / np.where(known[2] > 0, known[2], 1))[:, valid], atol=1e-12
    )


@given(
    times=st.integers(2, 6),
    is_smooth=st.booleans(),
    y=st.integers(-9, 45),
    x=st.integers(-9, 60),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
)
def test_any_window_is_a_part_of_the_whole(
    times: int, is_smooth: bool, y: int, x: int, height: int, width: int
) -> None:
    values, valid = enlarge(
        read, (7, 9), times, Window(y, x, height, width), is_smooth=is_smooth, keeps_dtype=True
    )
    everything, seen = whole(times, is_smooth=is_smooth)
    rows, columns = np.arange(y, y + height), np.arange(x, x + width)
    inside = np.ix_((rows >= 0) & (rows < 7 * times), (columns >= 0) & (columns < 9 * times))
    there = np.ix_(
        rows[(rows >= 0) & (rows < 7 * times)], columns[(columns >= 0) & (columns < 9 * times)]
    )
    assert np.array_equal(valid[inside], seen[there])
    outside = np.ones_like(valid)
    outside[inside] = False
    assert not valid[outside].any()
    for band in range(2):
        assert np.array_equal(
            values[band][inside][seen[there]], everything[band][there][seen[there]]
        )


def test_whole_numbers_stay_whole_where_they_are_to() -> None:
    def count(window: Window) -> Stored:
        numbers = np.arange(4, dtype=np.uint16).reshape(1, 2, 2)
        there = np.s_[window.y : window.y + window.height, window.x : window.x + window.width]
        return numbers[:, *there], np.ones((window.height, window.width), np.bool_)

    values, _ = enlarge(count, (2, 2), 2, Window(0, 0, 4, 4), is_smooth=True, keeps_dtype=True)
    assert values.dtype == np.uint16
    assert values[0, 0].tolist() == [0, 0, 1, 1]
