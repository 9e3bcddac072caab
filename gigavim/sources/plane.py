"""The whole image at exactly the spacing that was asked for.

The nearest finer level is read and averaged by area: target pixel ``i`` is the mean of the level's rows
from ``i * r`` to ``(i + 1) * r``, rows at the rim counted by the share that lies inside. Weights and the
order of the sums belong to the target pixel and not to the window, so two windows that overlap agree to
the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.errors import NoSpacingError, SourceError
from gigavim.geometry import Window
from gigavim.sources.source import Pixels, Source

SAME = 1e-6
"""Ratios this close to 1 are 1: less than a pixel over a million."""


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
            If the spacing asked for is finer than the source.
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
        return cls(source, level, ratio_y, ratio_x)

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

        Returns
        -------
        pixels
            Values as uint8 where the source is uint8, as the source's own dtype where no resampling is
            needed, else float32. A resampled pixel is the mean of its valid part, and is valid where at
            least half of its area is.
        """
        ratio_y, ratio_x = self._level_ratio()
        pixels = self.source.read_level(self.level, self.level_window(window))
        if ratio_y == ratio_x == 1:
            return pixels
        values, valid = area_mean(
            pixels.values,
            pixels.valid,
            _weights(window.y, window.height, ratio_y),
            _weights(window.x, window.width, ratio_x),
        )
        if self.source.dtype == np.uint8:
            values = np.rint(values).astype(np.uint8)
        return Pixels(values, valid, pixels.errors, pixels.read_s)

    def _level_ratio(self) -> tuple[float, float]:
        level = self.source.levels[self.level]
        return _snap(self.ratio_y / level.downsample_y), _snap(self.ratio_x / level.downsample_x)


def no_spacing(source: Source) -> str:
    """Say that a source has no spacing, and the remedy."""
    return (
        f"{source.path} does not say how large a pixel is; "
        f"pass --source-spacing (µm per pixel for a slide, CRS units for a scene)"
    )


def area_mean(
    values: NDArray[Any],
    valid: NDArray[np.bool_],
    rows: NDArray[np.float32],
    columns: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Average by area over what is valid.

    Parameters
    ----------
    values, valid
        The finer pixels, (height, width, band) and (height, width).
    rows, columns
        Shares as `_weights` gives them.

    Returns
    -------
    values
        Shape (rows, columns, band), 0 where nothing is valid.
    valid
        True where at least half of the area is valid.
    """
    if valid.all():
        whole = _reduce(_reduce(values, rows, 0), columns, 1)
        return whole, np.ones(whole.shape[:2], np.bool_)
    kept = np.where(valid[..., None], values, 0)
    total = _reduce(_reduce(kept, rows, 0), columns, 1)
    share = _reduce(_reduce(valid[..., None], rows, 0), columns, 1)
    mean = np.divide(total, share, out=np.zeros_like(total), where=share > 0)
    return mean, share[..., 0] >= 0.5 - SAME


def _snap(ratio: float) -> float:
    """Take a ratio that rounding alone keeps from a whole number as that number."""
    whole = round(ratio)
    return float(whole) if whole and abs(ratio - whole) <= SAME * whole else ratio


def _support(start: int, length: int, ratio: float) -> tuple[int, int]:
    """First and one past the last finer pixel under ``length`` coarse ones from ``start``."""
    taps = _taps(ratio)
    return math.floor(start * ratio), math.floor((start + length - 1) * ratio) + taps


def _taps(ratio: float) -> int:
    """How many finer pixels a coarse one can touch."""
    return int(ratio) if ratio == int(ratio) else math.ceil(ratio) + 1


def _weights(start: int, length: int, ratio: float) -> NDArray[np.float32]:
    """Return first finer pixel (relative to the window's) and shares, shape (length, 1 + taps)."""
    index = np.arange(start, start + length, dtype=np.float64)
    low, high = index * ratio, (index + 1) * ratio
    first = np.floor(low)
    fine = first[:, None] + np.arange(_taps(ratio))
    share = np.minimum(fine + 1, high[:, None]) - np.maximum(fine, low[:, None])
    table = np.column_stack([first - first[0], np.clip(share, 0, None) / ratio])
    return table.astype(np.float32)


def _reduce(values: NDArray[Any], table: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Sum the shares along one axis, tap by tap, in the same order for every pixel."""
    first, shares = table[:, 0].astype(np.intp), table[:, 1:]
    along = (slice(None),) * axis
    spread = (-1,) + (1,) * (values.ndim - 1 - axis)
    total = np.float32(0)
    for tap in range(shares.shape[1]):
        taken = values[(*along, first + tap)]
        total = total + taken * shares[:, tap].reshape(spread)
    return np.asarray(total, np.float32)
