"""Where things are; reads no pixel.

Three planes, each with half-open integer windows, (y, x) order and its origin at the image's
top-left corner:

- level-0 pixels: the finest level of the source;
- level pixels: one level of the pyramid, ``downsample`` level-0 pixels to the side;
- target pixels: the whole image resampled to the spacing that was asked for. Target pixel
  ``(i, j)`` covers level-0 rows ``[i * ratio_y, (i + 1) * ratio_y)`` and columns alike, whichever
  window reads it, so no reading depends on how it was cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Spacing:
    """The physical size of a pixel.

    >>> Spacing(0.5, 0.5, "µm", "aperio.MPP").x
    0.5
    """

    y: float
    """Height of a pixel, in ``unit``."""
    x: float
    """Width of a pixel, in ``unit``."""
    unit: str
    """``µm`` for a slide; the unit of the CRS (``metre``, ``degree``) for a scene."""
    origin: str
    """Where the figure comes from: ``user``, or the metadata field that says so."""

    def __post_init__(self) -> None:
        if not (self.y > 0 and self.x > 0 and math.isfinite(self.y) and math.isfinite(self.x)):
            raise ValueError(f"a spacing is positive and finite, not {self.y} x {self.x}")


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of the pyramid."""

    height: int
    """In pixels of this level."""
    width: int
    """In pixels of this level."""
    downsample_y: float
    """Level-0 rows to one row of this level; 1 for level 0."""
    downsample_x: float
    """Level-0 columns to one column of this level."""


def level_downsample(size_level0: int, size: int) -> float:
    """Return how many level-0 pixels one level pixel covers along an axis.

    Writers halve and round: 2967 rows become 741, and each still covers exactly 4. Dividing the
    sizes would give 4.004 and shift the far edge by three pixels, so a whole factor is taken when
    rounding explains the size; a power of two before any other.

    >>> level_downsample(2967, 741)
    4.0
    >>> level_downsample(1000, 300)
    3.3333333333333335
    """
    ratio = size_level0 / size
    for whole in (2 ** max(0, round(math.log2(ratio))), max(1, round(ratio))):
        if size in (size_level0 // whole, -(-size_level0 // whole)):
            return float(whole)
    return ratio


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open rectangle of whole pixels in one plane; it may reach beyond the image."""

    y: int
    x: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Grid:
    """All patches of a source at one spacing, in rows and columns.

    A patch is ``patch`` target pixels to the side and patches start every ``stride`` target pixels
    from the top-left corner. The last row and column may reach beyond the image.
    """

    rows: int
    columns: int
    patch: int
    """Side of a patch, in target pixels."""
    stride: int
    """From one patch to the next, in target pixels; equal to ``patch`` unless they overlap."""
    ratio_y: float
    """Level-0 rows to one target row."""
    ratio_x: float
    """Level-0 columns to one target column."""

    @classmethod
    def over(
        cls,
        height: int,
        width: int,
        *,
        patch: int,
        stride: int | None = None,
        ratio_y: float = 1.0,
        ratio_x: float = 1.0,
    ) -> Grid:
        """Lay patches over an image of ``height`` x ``width`` level-0 pixels, edges included.

        >>> Grid.over(2967, 2220, patch=16, ratio_y=2.0, ratio_x=2.0).shape
        (93, 70)
        """
        step = stride or patch

        def count(pixels: int, ratio: float) -> int:
            # A hair of tolerance: 48 px at ratio 0.1 * 3 are ten patches of 16, not eleven.
            return max(1, math.ceil(pixels / ratio / step - 1e-6))

        return cls(count(height, ratio_y), count(width, ratio_x), patch, step, ratio_y, ratio_x)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.columns

    @property
    def cell_y(self) -> float:
        """Height of one grid cell, in level-0 pixels."""
        return self.stride * self.ratio_y

    @property
    def cell_x(self) -> float:
        """Width of one grid cell, in level-0 pixels."""
        return self.stride * self.ratio_x

    @property
    def corner_y(self) -> float:
        """First level-0 row of the first cell: a cell lies in the middle of its patch."""
        return (self.patch - self.stride) / 2 * self.ratio_y

    @property
    def corner_x(self) -> float:
        """First level-0 column of the first cell."""
        return (self.patch - self.stride) / 2 * self.ratio_x

    def window(self, row: int, column: int, rows: int = 1, columns: int = 1) -> Window:
        """Return the target pixels that a rectangle of patches covers.

        >>> Grid.over(100, 100, patch=16, stride=8).window(1, 2, 2, 1)
        Window(y=8, x=16, height=24, width=16)
        """
        overlap = self.patch - self.stride
        return Window(
            row * self.stride,
            column * self.stride,
            rows * self.stride + overlap,
            columns * self.stride + overlap,
        )

    def coords(self, index: NDArray[np.integer]) -> NDArray[np.int32]:
        """Return the level-0 top-left corners of patches.

        Parameters
        ----------
        index
            Row and column of each patch, shape (n, 2).

        Returns
        -------
        coords
            x and y of each, rounded to whole pixels, shape (n, 2).
        """
        scale = np.array([self.cell_y, self.cell_x])
        corners: NDArray[np.float64] = np.rint(index * scale)
        return corners[:, ::-1].astype(np.int32)

    def blocks(self, rows: int, columns: int) -> Iterator[Block]:
        """Cut the grid in rectangles of at most ``rows`` x ``columns`` patches, row-major."""
        for row in range(0, self.rows, rows):
            for column in range(0, self.columns, columns):
                yield Block(
                    row, column, min(rows, self.rows - row), min(columns, self.columns - column)
                )


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of patches that is read at once."""

    row: int
    column: int
    rows: int
    columns: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of this block in an array over the grid."""
        return (
            slice(self.row, self.row + self.rows),
            slice(self.column, self.column + self.columns),
        )
