"""Coarse pixels laid on finer ones, so that windows agree to the last bit.

Where pixels nest, bilinear weights belong to where a pixel lies in the coarse one; that is several
times as fast as GDAL's warper. Where they do not, the warper is asked for the same blocks always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.geometry import Window

Stored = tuple[NDArray[Any], NDArray[np.bool_]]
"""Numbers, (band, height, width), and where they are valid, (height, width)."""


def enlarge(
    read: Callable[[Window], Stored],
    shape: tuple[int, int],
    times: int,
    window: Window,
    *,
    is_smooth: bool,
    keeps_dtype: bool,
) -> Stored:
    """Read a window of a raster enlarged a whole number of times.

    Parameters
    ----------
    read
        Reads a window that lies in the raster.
    shape
        Height and width of the raster.
    window
        In pixels of the enlarged raster; what lies beyond it is not valid.
    is_smooth
        Interpolate between the centres of the coarse pixels, over valid ones alone; else repeat
        them.
    keeps_dtype
        Round to the type of the raster, where that holds whole numbers.
    """
    rows = np.arange(window.y, window.y + window.height)
    columns = np.arange(window.x, window.x + window.width)
    inside = np.logical_and.outer(
        (rows >= 0) & (rows < shape[0] * times), (columns >= 0) & (columns < shape[1] * times)
    )
    top, bottom, down = _neighbours(rows, times, shape[0], is_smooth)
    left, right, along = _neighbours(columns, times, shape[1], is_smooth)
    y, x = int(top[0]), int(left[0])
    stored, seen = read(Window(y, x, int(bottom[-1]) + 1 - y, int(right[-1]) + 1 - x))
    top, bottom, left, right = top - y, bottom - y, left - x, right - x
    near_y = np.clip(rows // times, 0, shape[0] - 1) - y
    near_x = np.clip(columns // times, 0, shape[1] - 1) - x
    valid = inside & seen[near_y][:, near_x]
    if not is_smooth:
        return stored[:, near_y][:, :, near_x], valid

    def between(values: NDArray[Any]) -> NDArray[Any]:
        """Interpolate along columns of pixels first, of which there are fewer."""
        upper = values[..., top, :]
        tall = upper + (values[..., bottom, :] - upper) * down[:, None].astype(values.dtype)
        first = np.take(tall, left, -1)
        wide = np.take(tall, right, -1)
        wide -= first
        wide *= along.astype(values.dtype)
        wide += first
        return wide

    numbers = stored.astype(np.result_type(stored.dtype, np.float32))
    if seen.all():
        smooth = between(numbers)
    else:
        weight = between(seen.astype(numbers.dtype))
        total = between(np.where(seen, numbers, 0))
        smooth = np.divide(total, weight, out=np.zeros_like(total), where=valid)
    if keeps_dtype and stored.dtype.kind in "iu":
        return np.rint(smooth).astype(stored.dtype), valid
    return smooth, valid


def by_blocks(
    read: Callable[[Window], Stored], window: Window, block: tuple[int, int], shape: tuple[int, int]
) -> Stored:
    """Put a window together from whole blocks of a fixed size.

    What GDAL warps depends, in the last digits and at nodata, on the window that it is asked for.

    Parameters
    ----------
    shape
        Height and width of the image, at which the last blocks end.
    """
    height, width = block
    bottom, right = window.y + window.height, window.x + window.width
    first_y, first_x = window.y // height * height, window.x // width * width
    rows = []
    for y in range(first_y, bottom, height):
        row = [
            read(Window(y, x, min(height, shape[0] - y), min(width, shape[1] - x)))
            for x in range(first_x, right, width)
        ]
        stored, valid = zip(*row, strict=True)
        rows.append((np.concatenate(stored, axis=2), np.concatenate(valid, axis=1)))
    there = np.s_[window.y - first_y : bottom - first_y, window.x - first_x : right - first_x]
    return (
        np.concatenate([stored for stored, _ in rows], axis=1)[:, *there],
        np.concatenate([valid for _, valid in rows])[there],
    )


def _neighbours(
    places: NDArray[np.int64], times: int, size: int, is_smooth: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return, for fine pixels, the coarse ones before and after, and the share of the latter.

    >>> [each.tolist() for each in _neighbours(np.arange(4), 2, 2, True)]
    [[0, 0, 0, 1], [0, 1, 1, 1], [0.75, 0.25, 0.75, 0.25]]
    """
    if not is_smooth:
        near = np.clip(places // times, 0, size - 1)
        return near, near, np.zeros(len(places))
    # From the centre of the first coarse pixel, in halves of a fine one.
    halves = 2 * places + 1 - times
    before = halves // (2 * times)
    share = (halves - before * 2 * times) / (2 * times)
    return np.clip(before, 0, size - 1), np.clip(before + 1, 0, size - 1), share
