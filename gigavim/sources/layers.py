"""Bands of one file, read on the grid of the scene: as they lie there, or resampled to it.

A pixel is the same in whichever window it is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.vrt import WarpedVRT

from gigavim.errors import SourceError
from gigavim.geometry import Window
from gigavim.sources.nesting import by_blocks, enlarge
from gigavim.sources.pixel_grid import PixelGrid, upright_grid
from gigavim.sources.raster_source import crs_of, open_dataset

Numbers = NDArray[Any]

SAME = 1e-3
"""Ratios of pixel sides this close to 1 are 1."""

TOLERANCE = 0.01
"""Pixels by which GDAL may be off when it interpolates between places it has projected."""


@dataclass(frozen=True, slots=True)
class Raster:
    """What is known of a file without reading its pixels."""

    dataset: str
    grid: PixelGrid
    overviews: tuple[float, ...]
    """Rows of the file to one of each level of its pyramid; 1 comes first."""
    block: tuple[int, int]
    """Height and width of what is decoded at once."""
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    colours: tuple[ColorInterp, ...]
    is_wavelet: bool
    """Whether it is JPEG 2000, whose coarse pixels lie on the first of those they stand for."""

    def level(self, overview: int) -> PixelGrid:
        """Return where the pixels of a level of the pyramid lie.

        The low-pass of a wavelet keeps every second sample in its place (ISO/IEC 15444-1, annex F),
        where an average would lie in the middle of two.
        """
        factor = self.overviews[overview]
        grid = self.grid.reduced(factor)
        if not self.is_wavelet:
            return grid
        shift = (1 / factor - 1) / 2
        return replace(grid, transform=grid.transform @ Affine.translation(shift, shift))


@dataclass(frozen=True, slots=True)
class Placement:
    """How a file is read at one level of the scene."""

    grid: PixelGrid
    """Of the scene."""
    overview: int
    """The level of the file's own pyramid, 0 for the finest."""
    times: int
    """Pixels of the scene to a side of one of the file, where they nest in it."""
    corner: tuple[int, int] | None
    """Row and column at which the scene's grid starts in the file, in pixels of the scene; None
    where the warper must resample it."""
    resampling: Resampling


@dataclass(frozen=True, slots=True)
class Layer:
    """Bands of one file that are read alike."""

    raster: Raster
    indexes: tuple[int, ...]
    """In the file, from 1."""
    slots: tuple[int, ...]
    """In the scene."""
    nodata: float | None
    is_scaled: bool
    placements: tuple[Placement, ...]
    """For each level of the scene."""


def look_at(dataset: str) -> Raster:
    """Learn where the pixels of a file lie, and in which sizes it holds them.

    Raises
    ------
    SourceError
        If it cannot be read, or lies by ground control points alone.
    """
    with open_dataset(dataset) as raster:
        if raster.gcps[0] and raster.transform.is_identity:
            raise SourceError(
                f"{dataset} lies by ground control points alone; "
                "bring it on a grid with gdalwarp -t_srs EPSG:... first"
            )
        factors = [1.0]
        for level, factor in enumerate(raster.overviews(1), 1):
            with open_dataset(dataset, level) as overview:
                # A mask that only the full size has would be forgotten.
                if overview.mask_flag_enums != raster.mask_flag_enums:
                    break
                factors.append(float(factor))
        return Raster(
            dataset,
            PixelGrid(crs_of(raster), raster.transform, raster.height, raster.width),
            tuple(factors),
            raster.block_shapes[0],
            raster.dtypes,
            raster.nodatavals,
            raster.scales,
            raster.offsets,
            raster.colorinterp,
            raster.driver.startswith("JP2") or raster.driver == "JPEG2000",
        )


def place(
    raster: Raster, grids: Sequence[PixelGrid], has_classes: bool, path: str
) -> tuple[Placement, ...]:
    """Decide how a file is read at each level of a scene.

    Numbers are averaged where the file is finer and interpolated where it is coarser, codes are
    taken from the nearest pixel.

    Raises
    ------
    SourceError
        If the file lies nowhere, and would have to be resampled.
    """
    own = raster.grid
    natural = own if own.crs == grids[0].crs else upright_grid(own, grids[0].crs, path)
    placements = []
    for grid in grids:
        ratio = math.sqrt(grid.pixel_area / natural.pixel_area)
        overview = 0
        if not has_classes:
            overview = max(
                index
                for index, factor in enumerate(raster.overviews)
                if index == 0 or factor <= ratio * (1 + SAME)
            )
        factor = raster.overviews[overview]
        times = max(1, round(factor / ratio))
        corner = grid.offset_in(raster.level(overview).reduced(1 / times))
        resampling = _resampling(ratio / factor, has_classes, own, grid)
        placements.append(Placement(grid, overview, times, corner, resampling))
    return tuple(placements)


def _resampling(ratio: float, has_classes: bool, own: PixelGrid, grid: PixelGrid) -> Resampling:
    """Choose by pixels of the file to one of the scene; a flip alone moves no pixel."""
    if has_classes or _is_flip(own, grid):
        return Resampling.nearest
    return Resampling.average if ratio > 1 + SAME else Resampling.bilinear


def _is_flip(own: PixelGrid, grid: PixelGrid) -> bool:
    """Whether pixels of two grids are the same, but for the direction in which they are counted."""
    if own.crs != grid.crs:
        return False
    there = ~own.transform @ grid.transform
    linear = abs(there.a), abs(there.b), abs(there.d), abs(there.e)
    shift = there.c - round(there.c), there.f - round(there.f)
    return bool(np.allclose(linear, (1, 0, 0, 1), atol=1e-6) and np.allclose(shift, 0, atol=SAME))


class LayerReader:
    """One layer at one level, for one thread."""

    def __init__(self, layer: Layer, level: int, path: str) -> None:
        self._layer, self._place = layer, layer.placements[level]
        self._dataset = open_dataset(layer.raster.dataset, self._place.overview)
        self._alpha: int | None = None
        self._source = self._dataset
        if self._place.corner is None:
            self._source = self._warped(path)

    def read(self, window: Window) -> tuple[Numbers, NDArray[np.bool_]]:
        """Read a window of the scene.

        Returns
        -------
        stored
            The numbers as they are in the file, shape (band, height, width).
        valid
            Where there are any in all bands, shape (height, width).
        """
        if self._place.corner is None:
            warped = self._source
            return by_blocks(self._read, window, warped.block_shapes[0], warped.shape)
        row, column = self._place.corner
        moved = Window(window.y + row, window.x + column, window.height, window.width)
        if self._place.times == 1 and self._holds(moved):
            return self._read(moved)
        return enlarge(
            self._read,
            self._source.shape,
            self._place.times,
            moved,
            is_smooth=self._place.times > 1 and self._place.resampling != Resampling.nearest,
            keeps_dtype=not self._layer.is_scaled,
        )

    def _holds(self, window: Window) -> bool:
        height, width = self._source.shape
        rows = 0 <= window.y <= height - window.height
        return bool(rows and 0 <= window.x <= width - window.width)

    def _read(self, window: Window) -> tuple[Numbers, NDArray[np.bool_]]:
        """Read a window of what is open: the file, or the file on the scene's grid."""
        bottom, right = window.y + window.height, window.x + window.width
        rows_columns = (window.y, bottom), (window.x, right)
        indexes = list(self._layer.indexes)
        stored = self._source.read(indexes, window=rows_columns)
        valid = np.ones((window.height, window.width), np.bool_)
        if self._alpha is not None:
            valid &= self._source.read(self._alpha, window=rows_columns) > 0
        elif self._place.corner is not None:
            for index in indexes:
                if MaskFlags.all_valid not in self._source.mask_flag_enums[index - 1]:
                    valid &= self._source.read_masks(index, window=rows_columns) > 0
        if self._layer.nodata is not None:
            valid &= (stored != self._layer.nodata).all(0)
        if stored.dtype.kind == "f":
            valid &= np.isfinite(stored).all(0)
        return stored, valid

    def _warped(self, path: str) -> WarpedVRT:
        """Lay the file on the scene's grid, with something that says what it does not cover."""
        layer, raster, grid = self._layer, self._layer.raster, self._place.grid
        own_crs = crs_of(self._dataset)
        if own_crs is None:
            raise SourceError(
                f"{path}: {raster.dataset} has no CRS and another spacing than the other bands; "
                "choose bands of one spacing with --bands"
            )
        flags = {flag for index in layer.indexes for flag in self._flags(index)}
        types = {np.dtype(raster.dtypes[index - 1]) for index in layer.indexes}
        nodata = layer.nodata
        if nodata is None and all(each.kind == "f" for each in types) and flags <= {
            MaskFlags.all_valid
        }:  # fmt: skip
            nodata = math.nan
        options: dict[str, Any] = {
            "src_crs": own_crs,
            "src_transform": raster.level(self._place.overview).transform,
        }
        if nodata is not None:
            options |= {"src_nodata": nodata, "nodata": nodata}
        elif ColorInterp.alpha in raster.colours:
            self._alpha = raster.colours.index(ColorInterp.alpha) + 1
        else:
            options["add_alpha"] = True
            self._alpha = self._dataset.count + 1
        if layer.is_scaled and all(each.kind in "iu" for each in types):
            # A mean of whole numbers is none.
            options["dtype"] = "float32"
        return WarpedVRT(
            self._dataset,
            crs=grid.crs,
            transform=grid.transform,
            height=grid.height,
            width=grid.width,
            resampling=self._place.resampling,
            tolerance=TOLERANCE,
            **options,
        )

    def _flags(self, index: int) -> list[MaskFlags]:
        flags: list[MaskFlags] = self._dataset.mask_flag_enums[index - 1]
        return flags
