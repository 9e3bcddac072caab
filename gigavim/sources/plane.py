"""The whole image at exactly the spacing that was asked for.

The nearest finer level is read and averaged by area: target pixel ``i`` is the mean of the level's
rows from ``i * ratio`` to ``(i + 1) * ratio``, and a row at the rim counts by the share that lies
inside. Shares and the order of the sums belong to the target pixel and not to the window, so two
windows that overlap agree to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from gigavim.errors import NoSpacingError, SourceError
from gigavim.geometry import Window
from gigavim.sources.source import Pixels, ReadError, Source

SAME = 1e-6
"""Ratios this close to 1 are 1, and edges this close to a level pixel's fall on it."""

PART = 4096
"""Level pixels to a side that are held at once while resampling: 50 MB of 8-bit RGB."""

STRIPE = 64
"""Level rows that are averaged at once, so that they stay in the processor's cache."""

PAD = 16
"""Numbers between one row and the next: a cache line."""


@dataclass(frozen=True)
class Plane:
    """A source resampled to one spacing, read window by window."""

    source: Source
    level: int
    """The level that is read."""
    ratio_y: float
    """Level-0 rows to one target row."""
    ratio_x: float
    """Level-0 columns to one target column."""

    @classmethod
    def at(cls, source: Source, spacing: float | None = None) -> Plane:
        """Look at a source at a spacing, in µm for a slide and CRS units for a scene.

        Parameters
        ----------
        spacing
            Side of a target pixel; level 0 as it stands if None.

        Raises
        ------
        NoSpacingError
            If a spacing is asked for and the source's own is not known.
        SourceError
            If the spacing asked for is finer than the source, or so coarse that one pixel would be
            the mean of more than 4096 x 4096.
        """
        if spacing is None:
            return cls(source, 0, 1.0, 1.0)
        own = source.spacing
        if own is None:
            raise NoSpacingError(no_spacing(source))
        ratio_y, ratio_x = _snap(spacing / own.y), _snap(spacing / own.x)
        if min(ratio_y, ratio_x) < 1:
            raise SourceError(
                f"{source.path}: asked for {spacing:g} {own.unit}/px, which is finer than its "
                f"{min(own.y, own.x):g}; ask for --spacing {max(own.y, own.x):g} or coarser"
            )
        level = max(
            index
            for index, candidate in enumerate(source.levels)
            if _snap(ratio_y / candidate.downsample_y) >= 1
            and _snap(ratio_x / candidate.downsample_x) >= 1
        )
        plane = cls(source, level, ratio_y, ratio_x)
        if max(plane._level_ratio()) > PART:
            raise SourceError(
                f"{source.path}: asked for {spacing:g} {own.unit}/px, which is over {PART} of "
                f"its pixels to a side; ask for a finer --spacing"
            )
        return plane

    @property
    def height(self) -> int:
        """Rows of target pixels, the last one perhaps in part beyond the image."""
        return math.ceil(self.source.levels[0].height / self.ratio_y - SAME)

    @property
    def width(self) -> int:
        """Columns of target pixels."""
        return math.ceil(self.source.levels[0].width / self.ratio_x - SAME)

    def level_window(self, window: Window) -> Window:
        """Return the pixels of the level that a window of target pixels draws on."""
        ratio_y, ratio_x = self._level_ratio()
        y0, y1 = _support(window.y, window.height, ratio_y)
        x0, x1 = _support(window.x, window.width, ratio_x)
        return Window(y0, x0, y1 - y0, x1 - x0)

    def read(self, window: Window) -> Pixels:
        """Read a window of target pixels.

        Beside the window itself, memory holds at most 4098 x 4098 pixels of the level, and nothing
        where no resampling is needed.

        Returns
        -------
        pixels
            Values as uint8 where the source is uint8, as the source's own dtype where no resampling
            is needed, else float32. A resampled pixel is the mean of its valid part, and is valid
            where at least half of its area is.
        """
        ratio_y, ratio_x = self._level_ratio()
        if ratio_y == ratio_x == 1:
            return self.source.read_level(self.level, window)
        shape = window.height, window.width, len(self.source.bands)
        is_uint8 = self.source.dtype == np.uint8
        values = np.empty(shape, np.uint8 if is_uint8 else np.float32)
        valid = np.empty(shape[:2], np.bool_)
        errors: list[ReadError] = []
        read_s = 0.0
        for part in _cut(window, max(1, int(PART / ratio_y)), max(1, int(PART / ratio_x))):
            pixels = self.source.read_level(self.level, self.level_window(part))
            errors += pixels.errors
            read_s += pixels.read_s
            for stripe, mean, seen in self._means(part, pixels):
                top, left = stripe.y - window.y, stripe.x - window.x
                there = np.s_[top : top + stripe.height, left : left + stripe.width]
                values[there] = np.rint(mean, out=mean) if is_uint8 else mean
                valid[there] = seen
        # A file tile under two parts is named by both.
        return Pixels(values, valid, tuple(dict.fromkeys(errors)), read_s)

    def _means(
        self, window: Window, pixels: Pixels
    ) -> Iterator[tuple[Window, NDArray[np.float32], NDArray[np.bool_]]]:
        """Average the level pixels under a window, a stripe of target rows at a time."""
        ratio_y, ratio_x = self._level_ratio()
        columns = _shares(window.x, window.width, ratio_x)
        top = self.level_window(window).y
        for stripe in _cut(window, max(1, int(STRIPE / ratio_y)), window.width):
            rows = _shares(stripe.y, stripe.height, ratio_y)
            first = self.level_window(stripe).y - top
            under = slice(first, first + rows.shape[1])
            mean, seen = _area_mean(
                pixels.values[under], pixels.valid[under], rows, columns, ratio_y * ratio_x
            )
            yield stripe, mean, seen

    def _level_ratio(self) -> tuple[float, float]:
        """Level rows and columns to one target pixel."""
        level = self.source.levels[self.level]
        return _snap(self.ratio_y / level.downsample_y), _snap(self.ratio_x / level.downsample_x)


def no_spacing(source: Source) -> str:
    """Say that a source has no spacing, and the remedy."""
    return (
        f"{source.path} does not say how large a pixel is; "
        f"pass --source-spacing (µm per pixel for a slide, CRS units for a scene)"
    )


def _snap(ratio: float) -> float:
    """Take a ratio that rounding alone keeps from a whole number as that number."""
    if not math.isfinite(ratio):
        return ratio
    whole = round(ratio)
    return float(whole) if whole and abs(ratio - whole) <= SAME * whole else ratio


def _support(start: int, length: int, ratio: float) -> tuple[int, int]:
    """First and one past the last level pixel under ``length`` target ones from ``start``."""
    return math.floor(start * ratio + SAME), math.ceil((start + length) * ratio - SAME)


def _cut(window: Window, height: int, width: int) -> Iterator[Window]:
    """Cut a window in parts of at most ``height`` x ``width`` pixels."""
    bottom, right = window.y + window.height, window.x + window.width
    for y in range(window.y, bottom, height):
        for x in range(window.x, right, width):
            yield Window(y, x, min(height, bottom - y), min(width, right - x))


def _shares(start: int, length: int, ratio: float) -> sparse.csr_array:
    """Return how much of each level pixel lies in each target pixel, along one axis.

    Returns
    -------
    shares
        Shape (target, level), from the first target pixel and the first level pixel under it; each
        row sums to ``ratio``.
    """
    target = np.arange(start, start + length)
    low, high = target * ratio, (target + 1) * ratio
    first = np.floor(low + SAME).astype(np.int64)
    count = np.ceil(high - SAME).astype(np.int64) - first
    bounds = np.concatenate([[0], np.cumsum(count)])
    of = np.repeat(np.arange(length), count)
    level = first[of] + np.arange(len(of)) - bounds[of]
    share = np.minimum(level + 1, high[of]) - np.maximum(level, low[of])
    return sparse.csr_array((share.astype(np.float32), level - first[0], bounds))


def _area_mean(
    values: NDArray[np.generic],
    valid: NDArray[np.bool_],
    rows: sparse.csr_array,
    columns: sparse.csr_array,
    area: float,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Average by area over what is valid.

    Parameters
    ----------
    values, valid
        Level pixels, (row, column, band) and (row, column).
    rows, columns
        Their shares, from `_shares`.
    area
        Level pixels to one target pixel.

    Returns
    -------
    values
        Shape (row, column, band), 0 where not valid.
    valid
        True where at least half of the area is.
    """
    total = _area_sum(values, rows, columns)
    if valid.all():
        total /= np.float32(area)
        return total, np.ones(total.shape[:2], np.bool_)
    # Exactly 0 where nothing is missing, so that a pixel does not feel what its neighbours lack.
    missing = _area_sum(~valid[..., None], rows, columns)
    share = np.float32(area) - missing
    enough = missing <= (0.5 + SAME) * area
    mean = np.divide(total, share, out=np.zeros_like(total), where=enough)
    return mean, enough[..., 0]


def _area_sum(
    values: NDArray[np.generic], rows: sparse.csr_array, columns: sparse.csr_array
) -> NDArray[np.float32]:
    """Sum level pixels, each by its share, rows first.

    SciPy adds up a sparse row from its first entry to its last, whatever else is in the matrix; the
    sums of BLAS would depend on the window.
    """
    height, width, bands = values.shape
    # The pad keeps rows from starting a power of two apart, where they would share cache lines.
    level = np.zeros((height, width * bands + PAD), np.float32)
    level[:, :-PAD] = values.reshape(height, -1)
    by_rows = (rows @ level)[:, :-PAD]
    # Turned, so that this product too runs along memory: (column, band * target row).
    by_columns = columns @ by_rows.T.reshape(width, -1)
    turned = by_columns.reshape(-1, rows.shape[0]).T
    return np.ascontiguousarray(turned).reshape(rows.shape[0], -1, bands)
