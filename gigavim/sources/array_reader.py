"""Bands of one Zarr array, read on the grid of the scene: as they lie there, or resampled to it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform_bounds

from gigavim.errors import SourceError
from gigavim.geometry import Window
from gigavim.sources.geozarr import open_array, read_array
from gigavim.sources.layers import TOLERANCE, Layer
from gigavim.sources.nesting import by_blocks, enlarge
from gigavim.sources.pixel_grid import PixelGrid

MARGIN = 3
"""Pixels around a window that a kernel may draw on, times the ratio of the spacings."""


BLOCK = 512
"""Pixels of the scene to a side that are resampled at once."""


class ArrayReader:
    """One layer at one level."""

    def __init__(self, layer: Layer, level: int, path: str) -> None:
        self._layer, self._place = layer, layer.placements[level]
        self._array = open_array(layer.raster.dataset)
        if self._place.corner is None and layer.raster.grid.crs is None:
            raise SourceError(
                f"{path}: {self._array.path} has no CRS and another spacing than the other bands; "
                "choose bands of one spacing with --bands"
            )

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window of the scene; see `LayerReader.read`."""
        if self._place.corner is None:
            shape = self._place.grid.height, self._place.grid.width
            return by_blocks(self._resampled, window, (BLOCK, BLOCK), shape)
        row, column = self._place.corner
        moved = Window(window.y + row, window.x + column, window.height, window.width)
        if self._place.times == 1:
            return self._stored(moved)
        return enlarge(
            self._stored,
            (self._array.shape[-2], self._array.shape[-1]),
            self._place.times,
            moved,
            is_smooth=self._place.resampling != Resampling.nearest,
            keeps_dtype=not self._layer.is_scaled,
        )

    def _stored(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window of the array itself; what lies beyond it is not valid."""
        height, width = self._array.shape[-2:]
        top, left = max(0, window.y), max(0, window.x)
        bottom = max(top, min(height, window.y + window.height))
        right = max(left, min(width, window.x + window.width))
        shape = window.height, window.width
        stored = np.zeros((len(self._layer.indexes), *shape), self._array.dtype)
        valid = np.zeros(shape, np.bool_)
        there = np.s_[top - window.y : bottom - window.y, left - window.x : right - window.x]
        for number, index in enumerate(self._layer.indexes):
            rows, columns = slice(top, bottom), slice(left, right)
            stored[number, *there] = read_array(self._array, index, rows, columns)
        valid[there] = True
        if self._layer.nodata is not None:
            valid &= (stored != self._layer.nodata).all(0)
        if stored.dtype.kind == "f":
            valid &= np.isfinite(stored).all(0)
        return stored, valid

    def _resampled(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read what a block draws on, and lay it on the scene's grid."""
        grid, own = self._place.grid, self._layer.raster.grid
        part = PixelGrid(
            grid.crs,
            grid.transform @ Affine.translation(window.x, window.y),
            window.height,
            window.width,
        )
        under = self._under(part, own)
        stored, seen = self._stored(under)
        kind = np.float64 if stored.dtype.itemsize > 4 else np.float32
        holed = np.where(seen, stored, np.nan).astype(kind)
        resampled = np.full((len(stored), window.height, window.width), np.nan, kind)
        reproject(
            holed,
            resampled,
            src_crs=own.crs,
            src_transform=own.transform @ Affine.translation(under.x, under.y),
            src_nodata=math.nan,
            dst_crs=grid.crs,
            dst_transform=part.transform,
            dst_nodata=math.nan,
            resampling=self._place.resampling,
            tolerance=TOLERANCE,
        )
        valid = np.isfinite(resampled).all(0)
        resampled[:, ~valid] = 0
        is_whole = stored.dtype.kind in "iu" and not self._layer.is_scaled
        return (np.rint(resampled).astype(stored.dtype) if is_whole else resampled), valid

    def _under(self, part: PixelGrid, own: PixelGrid) -> Window:
        """Return the pixels of the array that a part of the scene draws on."""
        bounds = part.bounds
        if part.crs != own.crs:
            bounds = transform_bounds(part.crs, own.crs, *bounds)
        west, south, east, north = bounds
        corners = [~own.transform @ (x, y) for x in (west, east) for y in (south, north)]
        xs, ys = zip(*corners, strict=True)
        ratio = max((max(xs) - min(xs)) / part.width, (max(ys) - min(ys)) / part.height, 1.0)
        margin = math.ceil(MARGIN * ratio)
        y, x = math.floor(min(ys)) - margin, math.floor(min(xs)) - margin
        bottom, right = math.ceil(max(ys)) + margin, math.ceil(max(xs)) + margin
        # Far outside there is nothing to read.
        y, bottom = max(y, -margin), min(bottom, own.height + margin)
        x, right = max(x, -margin), min(right, own.width + margin)
        return Window(y, x, max(1, bottom - y), max(1, right - x))
