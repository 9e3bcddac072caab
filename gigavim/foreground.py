"""Which patches are worth reading: tissue of a slide, valid data of a scene, or the user's mask.

A patch is foreground where at least half of its grid cell is, by area.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.errors import SourceError
from gigavim.geometry import Grid, Window
from gigavim.masks import Mask, covered, read_mask
from gigavim.sources.plane import Plane
from gigavim.sources.source import Band, Pixels, ReadError, Source
from gigavim.tissue import tissue

FINEST_UM = 4.0
"""Tissue is looked for no finer than this: below it, gaps between cells are background."""


def foreground(
    source: Source, grid: Grid, *, mask: str | None = None, read_all: bool = False
) -> NDArray[np.bool_]:
    """Decide which patches to read.

    Parameters
    ----------
    mask
        A file that says where, see `read_mask`. If None: the tissue of a slide; the valid data of a
        scene, without what is 0 in each of several bands.
    read_all
        Every patch, without looking.

    Returns
    -------
    foreground
        Shape (rows, columns); all False if no tissue or data was found. What cannot be decoded is
        taken as foreground, so that the run meets it again and reports it.

    Raises
    ------
    SourceError
        If the image or the mask cannot be read, or the mask covers nothing.
    """
    if read_all:
        return np.ones(grid.shape, np.bool_)
    if mask is not None:
        found = covered(read_mask(mask, source, grid), grid)
        if not found.any():
            finest = source.levels[0]
            raise SourceError(
                f"{mask}: the mask covers no patch of {source.path} "
                f"({finest.width} x {finest.height} pixels); draw it in pixels of level 0, "
                "or in the CRS of the scene"
            )
        return found
    pixels, ratio_y, ratio_x = thumbnail(source, _side(source))
    found = data_of(pixels, source.bands) if source.kind == "scene" else tissue(pixels)
    unknown = _unreadable(source, pixels.errors, found.shape, ratio_y, ratio_x)
    return covered(Mask(found | unknown, ratio_y, ratio_x), grid)


def thumbnail(source: Source, max_side: int = 2048) -> tuple[Pixels, float, float]:
    """Return the whole image, averaged by area to at most ``max_side`` pixels a side.

    The coarsest level that is still fine enough is read in pieces of about 64 MB, so a single-level
    file of ten gigapixels takes time but no memory.

    Returns
    -------
    pixels
        The image; not enlarged where it is small.
    ratio_y, ratio_x
        Level-0 rows and columns to one pixel; equal.
    """
    finest = source.levels[0]
    ratio = max(1.0, finest.height / max_side, finest.width / max_side)
    level = max(
        index
        for index, candidate in enumerate(source.levels)
        if max(candidate.downsample_y, candidate.downsample_x) <= ratio
    )
    plane = Plane(source, level, ratio, ratio)
    values = np.zeros((plane.height, plane.width, len(source.bands)), _dtype(plane))
    valid = np.zeros((plane.height, plane.width), np.bool_)
    errors: list[ReadError] = []
    read_s = 0.0
    for window in _pieces(plane):
        piece = plane.read(window)
        rows = slice(window.y, window.y + window.height)
        columns = slice(window.x, window.x + window.width)
        values[rows, columns], valid[rows, columns] = piece.values, piece.valid
        errors.extend(piece.errors)
        read_s += piece.read_s
    return Pixels(values, valid, tuple(dict.fromkeys(errors)), read_s), ratio, ratio


def data_of(pixels: Pixels, bands: Sequence[Band]) -> NDArray[np.bool_]:
    """Find what a sensor saw: valid pixels, but for those that are 0 in each of several bands.

    Many products fill the border of their swath so and declare no nodata value.
    """
    return pixels.valid & ~filled(pixels, bands)


def filled(pixels: Pixels, bands: Sequence[Band]) -> NDArray[np.bool_]:
    """Find valid pixels that are stored as 0 in each of several bands; of one band, none."""
    if len(bands) == 1:
        return np.zeros_like(pixels.valid)
    found = pixels.valid.copy()
    for values, band in zip(pixels.values.transpose(2, 0, 1), bands, strict=True):
        # The mean of equal numbers may be off in the last bit.
        found &= abs(values - band.zero) <= 1e-6 * abs(band.zero) if band.zero else values == 0
    return found


def _side(source: Source) -> int:
    """Longest side of the thumbnail to look for foreground in."""
    finest, spacing = source.levels[0], source.spacing
    if source.kind == "scene" or spacing is None:
        return 2048
    extent_um = max(finest.height * spacing.y, finest.width * spacing.x)
    return min(2048, math.ceil(extent_um / FINEST_UM))


def _dtype(plane: Plane) -> np.dtype[Any]:
    """Return the dtype that `Plane.read` gives."""
    own = plane.source.dtype
    finest = plane.source.levels[plane.level]
    same = plane.ratio_y == finest.downsample_y and plane.ratio_x == finest.downsample_x
    return own if same or own == np.uint8 else np.dtype(np.float32)


def _pieces(plane: Plane) -> Iterator[Window]:
    """Cut a plane in squares that draw on about 64 MB each."""
    source = plane.source
    ratio = plane.ratio_y / source.levels[plane.level].downsample_y
    pixel_bytes = len(source.bands) * source.dtype.itemsize
    side = max(1, int(math.sqrt(64e6 / pixel_bytes) / ratio))
    for y in range(0, plane.height, side):
        for x in range(0, plane.width, side):
            yield Window(y, x, min(side, plane.height - y), min(side, plane.width - x))


def _unreadable(
    source: Source,
    errors: tuple[ReadError, ...],
    shape: tuple[int, ...],
    ratio_y: float,
    ratio_x: float,
) -> NDArray[np.bool_]:
    """Mark what could not be decoded."""
    marked = np.zeros(shape, np.bool_)
    for error in errors:
        level, window = source.levels[error.level], error.window
        y, x = level.downsample_y / ratio_y, level.downsample_x / ratio_x
        rows = slice(int(window.y * y), math.ceil((window.y + window.height) * y))
        columns = slice(int(window.x * x), math.ceil((window.x + window.width) * x))
        marked[rows, columns] = True
    return marked
