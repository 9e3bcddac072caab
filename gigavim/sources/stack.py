"""A product as one image: all of its bands on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.features import geometry_mask

from gigavim.errors import SourceError
from gigavim.geometry import Level, Window
from gigavim.sources.area_of_interest import read_area
from gigavim.sources.array_reader import ArrayReader
from gigavim.sources.bands import name_bands, select_bands
from gigavim.sources.clouds import QUALITY_BANDS, cloud_and_shadow, is_quality_band
from gigavim.sources.file_source import FileSource, Options, Part, PerThread
from gigavim.sources.geozarr import UNDECODABLE, is_zarr_array, look_at_array
from gigavim.sources.layers import Layer, LayerReader, Raster, look_at, place
from gigavim.sources.narrow import read_around
from gigavim.sources.pixel_grid import (
    PixelGrid,
    check_crs,
    check_extents,
    crop,
    parse_crs,
    upright_grid,
)
from gigavim.sources.products import Product, ProductBand
from gigavim.sources.remote import network, reaching
from gigavim.sources.source import Band, Pixels
from gigavim.sources.spacing import transform_spacing, user_spacing

FAULTS = (RasterioError, *UNDECODABLE)
"""What GDAL and zarr raise on what they cannot decode."""


class LayerReaders:
    """The readers of one thread, each opened on first use."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, tuple[int, ...], int], LayerReader | ArrayReader] = {}

    def get(self, layer: Layer, level: int, path: str) -> LayerReader | ArrayReader:
        """Return the reader of a layer at a level."""
        key = layer.raster.dataset, layer.indexes, level
        if key not in self._open:
            is_array = is_zarr_array(layer.raster.dataset)
            reader = ArrayReader if is_array else LayerReader
            self._open[key] = reader(layer, level, path)
        return self._open[key]


@dataclass(frozen=True, eq=False, kw_only=True)
class StackSource(FileSource):
    """Rasters that GDAL reads, joined on one grid."""

    layers: tuple[Layer, ...]
    scales: tuple[float, ...]
    """Per band of the scene."""
    offsets: tuple[float, ...]
    """Per band of the scene."""
    grids: tuple[PixelGrid, ...]
    """Of each level."""
    quality: ProductBand | None
    """The band that says where clouds are, where the product has one."""
    area: shapely.Geometry | None
    """What is outside is not valid; in the CRS of the scene."""
    cell: tuple[int, int]
    """Level-0 pixels that are decoded at once in the coarsest file."""
    readers: PerThread[LayerReaders] = field(repr=False)

    def _blank(self, window: Window) -> Part:
        # Files hold a band each: one after the other they are copied twice as fast.
        shape = len(self.bands), window.height, window.width
        return np.zeros(shape, self.dtype).transpose(1, 2, 0), np.zeros(shape[1:], np.bool_)

    def _read(self, level: int, window: Window) -> Pixels:
        read = partial(self._part, level)
        with network(self._datasets):
            parts = read_around(read, [window], self.cell, FAULTS)
            return self._joined(level, window, parts)

    def _part(self, level: int, window: Window) -> Part:
        values, valid = self._blank(window)
        valid[:] = True
        for layer in self.layers:
            stored, seen = self._stored(layer, level, window)
            valid &= seen
            for slot, numbers in zip(layer.slots, stored, strict=True):
                scale, offset = self.scales[slot], self.offsets[slot]
                if (scale, offset) != (1, 0):
                    numbers = numbers * np.float32(scale) + np.float32(offset)
                values[..., slot] = numbers
        if self.options.mask_clouds and self.quality is not None:
            codes = self.read_quality(level, window)
            cloud, shadow = cloud_and_shadow(codes, self.quality.band.name)
            valid &= ~(cloud | shadow)
        if self.area is not None and valid.any():
            moved = self.grids[level].transform @ Affine.translation(window.x, window.y)
            valid &= geometry_mask([self.area], valid.shape, moved, invert=True)
        values[~valid] = 0
        return values, valid

    def read_quality(self, level: int, window: Window) -> NDArray[Any]:
        """Read the codes of the quality band in a window of one level, shape (height, width).

        Raises
        ------
        SourceError
            If the product has no such band, or it cannot be read.
        """
        layer = self._quality_layer
        with network((layer.raster.dataset,)):
            stored, _ = self._stored(layer, level, window)
        codes: NDArray[Any] = stored[0]
        return codes

    def _stored(
        self, layer: Layer, level: int, window: Window
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        # A server that is away is asked once, and not again for every part of the window.
        with reaching(layer.raster.dataset):
            return self.readers.get().get(layer, level, self.path).read(window)

    @property
    def _datasets(self) -> tuple[str, ...]:
        return tuple(layer.raster.dataset for layer in self.layers)

    @cached_property
    def _quality_layer(self) -> Layer:
        """Place of the quality band, which is opened only where it is needed."""
        band = self.quality
        if band is None:
            raise SourceError(
                f"{self.path} has no band that says where clouds are "
                f"({', '.join(QUALITY_BANDS)}); leave out --mask-clouds"
            )
        with network((band.dataset,)):
            rasters = {band.dataset: _look_at(band.dataset)}
            return _layers([band], rasters, self.grids, self.path)[0]


def open_stack(product: Product, options: Options) -> StackSource:
    """Open the bands of a product that are asked for, on the grid of the finest of them.

    Raises
    ------
    SourceError
        If a file cannot be read, bands do not lie on the same ground, or what is asked for is not
        in the scene.
    BandError
        If it has no band that was asked for.
    """
    path = product.path
    bands = tuple(each.band for each in product.bands)
    selected = select_bands(options.bands, bands, path)
    if options.bands is None:
        selected = tuple(i for i in selected if not product.bands[i].is_extra) or selected
    chosen = [product.bands[index] for index in selected]
    names = tuple(dict.fromkeys(each.dataset for each in chosen))
    with network(names):
        rasters = {name: _look_at(name) for name in names}
        factors, grids, area = _grids(chosen, rasters, options, path)
        layers = _layers(chosen, rasters, grids, path)
    scales, offsets = _scaling(chosen, rasters)
    first = grids[0]
    transform = tuple(first.transform)[:6]
    unit = None if first.crs is None else str(first.crs.units_factor[0])
    quality = [each for each in product.bands if is_quality_band(each.band.name)]
    source = StackSource(
        path=path,
        options=options,
        kind="scene",
        reader="rasterio",
        levels=tuple(
            Level(grid.height, grid.width, factor, factor)
            for grid, factor in zip(grids, factors, strict=True)
        ),
        bands=tuple(map(_with_zero, name_bands(options.bands, bands, selected), offsets)),
        dtype=_dtype(chosen, rasters, scales, offsets, path),
        spacing=(
            user_spacing(options.spacing, unit or "CRS unit") or transform_spacing(transform, unit)
        ),
        crs=first.crs.to_wkt() if first.crs else None,
        transform=transform,
        metadata={key: value for key, value in product.metadata.items() if value},
        layers=layers,
        scales=scales,
        offsets=offsets,
        grids=grids,
        quality=quality[0] if quality else None,
        area=area,
        cell=_cell(layers),
        readers=PerThread(LayerReaders),
    )
    if options.mask_clouds:
        # What is missing is said now, and not once a run has begun.
        source.read_quality(len(grids) - 1, Window(0, 0, 1, 1))
    return source


def _look_at(dataset: str) -> Raster:
    with reaching(dataset):
        return look_at_array(dataset) if is_zarr_array(dataset) else look_at(dataset)


def _grids(
    chosen: Sequence[ProductBand], rasters: dict[str, Raster], options: Options, path: str
) -> tuple[tuple[float, ...], tuple[PixelGrid, ...], shapely.Geometry | None]:
    """Return the downsampling and the grid of each level, and the area in its CRS.

    The grid is that of the finest band, unless the user asks for another; its levels are those of
    the file.
    """
    own = [(each.band.name, rasters[each.dataset].grid) for each in chosen]
    if options.crs is None:
        check_crs(own, path)
        if options.bounds is None and options.aoi is None:
            check_extents(own, path)
    finest = min((rasters[each.dataset] for each in chosen), key=lambda it: it.grid.pixel_area)
    grid = finest.grid
    is_placed = options.crs or options.bounds or options.aoi
    is_resampled = any(each.offset_in(grid) is None for _, each in own)
    # What lies askew is read as it lies, unless it must be resampled all the same.
    if is_placed or is_resampled or not (grid.is_upright or grid.is_turned):
        crs = parse_crs(options.crs) if options.crs else None
        grid = upright_grid(grid, crs, path)
    area = None
    if options.aoi is not None:
        if grid.crs is None:
            raise SourceError(f"{path} has no CRS to lay {options.aoi} on; leave out --aoi")
        area = read_area(options.aoi, grid.crs)
    grid = crop(grid, options.bounds, area, path)
    factors = finest.overviews
    return factors, tuple(grid.reduced(factor) for factor in factors), area


def _layers(
    chosen: Sequence[ProductBand],
    rasters: dict[str, Raster],
    grids: Sequence[PixelGrid],
    path: str,
) -> tuple[Layer, ...]:
    """Join the bands that lie in one file and are read alike."""
    alike: dict[tuple[str, bool, float | None, bool], list[int]] = {}
    for slot, each in enumerate(chosen):
        raster = rasters[each.dataset]
        own = raster.nodata[each.index - 1]
        key = (
            each.dataset,
            each.has_classes,
            own if each.nodata is None else each.nodata,
            _own_scaling(each, raster) != (1, 0),
        )
        alike.setdefault(key, []).append(slot)
    return tuple(
        Layer(
            rasters[dataset],
            tuple(chosen[slot].index for slot in slots),
            tuple(slots),
            nodata,
            is_scaled,
            place(rasters[dataset], grids, has_classes, path),
        )
        for (dataset, has_classes, nodata, is_scaled), slots in alike.items()
    )


def _own_scaling(band: ProductBand, raster: Raster) -> tuple[float, float]:
    """Return scale and offset of a band, as the product says or else its file."""
    scale = raster.scales[band.index - 1] if band.scale is None else band.scale
    offset = raster.offsets[band.index - 1] if band.offset is None else band.offset
    return scale, offset


def _with_zero(band: Band, offset: float) -> Band:
    return replace(band, zero=offset)


def _scaling(
    chosen: Sequence[ProductBand], rasters: dict[str, Raster]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    pairs = [_own_scaling(each, rasters[each.dataset]) for each in chosen]
    return tuple(scale for scale, _ in pairs), tuple(offset for _, offset in pairs)


def _dtype(
    chosen: Sequence[ProductBand],
    rasters: dict[str, Raster],
    scales: Sequence[float],
    offsets: Sequence[float],
    path: str,
) -> np.dtype[Any]:
    """Return the type that holds every band after scale and offset."""
    types = []
    for each, scale, offset in zip(chosen, scales, offsets, strict=True):
        raster = rasters[each.dataset]
        stored = np.dtype(raster.dtypes[each.index - 1])
        if stored.kind == "c":
            raise SourceError(
                f"{path}: {each.band.name} is complex; write its amplitude to a raster first"
            )
        if raster.colours[each.index - 1] == ColorInterp.palette and not each.has_classes:
            raise SourceError(
                f"{path}: {each.band.name} holds numbers of a colour table; "
                "expand it with gdal_translate -expand rgb"
            )
        types.append(stored if (scale, offset) == (1, 0) else np.dtype(np.float32))
    return np.result_type(*types)


def _cell(layers: Sequence[Layer]) -> tuple[int, int]:
    """Return the largest block of any file, in pixels of the scene."""
    sides = []
    for layer in layers:
        natural, grid = layer.raster.grid, layer.placements[0].grid
        ratio = 1.0
        if natural.crs == grid.crs:
            ratio = (natural.pixel_area / grid.pixel_area) ** 0.5
        sides.append([max(1, round(side * ratio)) for side in layer.raster.block])
    heights, widths = zip(*sides, strict=True)
    return max(heights), max(widths)
