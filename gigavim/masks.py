"""Masks over a whole image: read from a file, and brought onto a grid.

A mask starts at the image's top-left corner; each of its pixels covers ``ratio_y`` x ``ratio_x``
level-0 pixels.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gigavim.errors import SourceError
from gigavim.geometry import Grid
from gigavim.qupath import qupath_origin
from gigavim.sources.source import Source


class Mask(NamedTuple):
    """Foreground of a whole image."""

    values: NDArray[np.bool_]
    """Shape (height, width)."""
    ratio_y: float
    """Level-0 rows to one row of the mask."""
    ratio_x: float
    """Level-0 columns to one column of the mask."""


def covered(mask: Mask, grid: Grid) -> NDArray[np.bool_]:
    """Tell which grid cells a mask covers by half or more, shape (rows, columns).

    Areas are exact, also where a cell cuts mask pixels; what lies beyond the mask is background.
    """
    # Whole columns first: the integral of the mask along y, then its difference over each cell.
    bounds_x = (grid.corner_x + np.arange(grid.columns + 1) * grid.cell_x) / mask.ratio_x
    bounds_y = (grid.corner_y + np.arange(grid.rows + 1) * grid.cell_y) / mask.ratio_y
    along_x = np.diff(_integral(mask.values, 1, bounds_x), axis=1)
    half = 0.5 * grid.cell_y * grid.cell_x / (mask.ratio_y * mask.ratio_x) * (1 - 1e-6)
    found = np.empty(grid.shape, np.bool_)
    for row in range(0, grid.rows, 1024):  # bounds the floats, 64 times the answer
        rows = slice(row, min(row + 1024, grid.rows))
        area = np.diff(_integral(along_x, 0, bounds_y[rows.start : rows.stop + 1]), axis=0)
        found[rows] = area >= half
    return found


def read_mask(path: str, source: Source, grid: Grid) -> Mask:
    """Read where the foreground is from a file.

    Parameters
    ----------
    path
        GeoJSON polygons: of a slide, x and y in level-0 pixels, as QuPath counts them; of a scene,
        in the CRS that the file names, else longitude and latitude (RFC 7946) if they fit these,
        else in the CRS of the scene. Or an image (PNG, TIFF), foreground where it is not 0: aligned
        by its CRS where it and the source have one, else stretched over the whole source.

    Raises
    ------
    SourceError
        If the file cannot be read, holds no polygon, or is an image of other proportions.
    """
    if not Path(path).is_file():
        raise SourceError(f"{path}: no such mask; pass a GeoJSON, PNG or TIFF file to --mask")
    if Path(path).suffix.lower() in {".geojson", ".json"}:
        return _polygon_mask(path, source, grid)
    return _image_mask(path, source, grid)


def _polygon_mask(path: str, source: Source, grid: Grid) -> Mask:
    """Burn polygons on the canvas; a pixel is in where its centre is."""
    from rasterio import Affine
    from rasterio.features import rasterize
    from rasterio.warp import transform_geom
    from shapely import GEOSException
    from shapely.geometry import shape

    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        polygons = [geometry for geometry in _geometries(content) if shape(geometry).area > 0]
    except (ValueError, TypeError, KeyError, AttributeError, GEOSException) as error:
        raise SourceError(f"{path}: not GeoJSON ({error}); export polygons as GeoJSON") from error
    if not polygons:
        raise SourceError(f"{path}: holds no polygon; draw at least one, or leave out --mask")
    if source.crs is not None:
        crs = _crs_of(content, [shape(polygon).bounds for polygon in polygons], source.crs)
        polygons = [transform_geom(crs, source.crs, polygon) for polygon in polygons]
    size, ratio_y, ratio_x, transform = _canvas(source, grid)
    x, y = qupath_origin(source)
    a, b, c, d, e, f, *_ = transform
    transform = Affine(a, b, c - x, d, e, f - y)
    values = rasterize(polygons, size, transform=transform, dtype=np.uint8)
    return Mask(values.astype(np.bool_), ratio_y, ratio_x)


def _geometries(content: Any) -> Iterator[dict[str, Any]]:
    """Walk over the geometries of features, collections and bare lists of them, as in QuPath."""
    if isinstance(content, list):
        for part in content:
            yield from _geometries(part)
    elif content["type"] == "FeatureCollection":
        yield from _geometries(content["features"])
    elif content["type"] == "GeometryCollection":
        yield from _geometries(content["geometries"])
    elif content["type"] == "Feature":
        if content["geometry"] is not None:
            yield from _geometries(content["geometry"])
    else:
        yield content


def _crs_of(content: Any, bounds: list[tuple[float, ...]], own: str) -> str:
    """Tell the CRS of GeoJSON: named as of 2008, else RFC 7946's if it can be, else the scene's."""
    if isinstance(content, dict) and "crs" in content:
        return str(content["crs"]["properties"]["name"])
    west, south, east, north = np.transpose(bounds)
    if min(west) >= -180 and max(east) <= 180 and min(south) >= -90 and max(north) <= 90:
        return "OGC:CRS84"
    return own


def _image_mask(path: str, source: Source, grid: Grid) -> Mask:
    """Read an image, aligned where it can be."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.warp import reproject

    try:
        with warnings.catch_warnings():
            # A plain PNG has no georeference, and needs none.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as image:
                if image.crs is not None and source.crs is not None:
                    size, ratio_y, ratio_x, transform = _canvas(source, grid)
                    values = np.zeros(size, np.uint8)
                    inside = _any_band(image, image.shape) & (image.dataset_mask() > 0)
                    reproject(
                        inside.astype(np.uint8),
                        values,
                        src_transform=image.transform,
                        src_crs=image.crs,
                        dst_transform=transform,
                        dst_crs=source.crs,
                        resampling=Resampling.nearest,
                    )
                    return Mask(values > 0, ratio_y, ratio_x)
                _check_proportions(path, image.shape, source)
                # A mask as large as the slide itself is thinned while it is read.
                part = max(1.0, max(image.shape) / 8192)
                found = _any_band(image, (round(image.height / part), round(image.width / part)))
    except RasterioError as error:
        raise SourceError(
            f"{path}: cannot be read as a mask ({error}); pass a GeoJSON, PNG or TIFF file"
        ) from error
    finest = source.levels[0]
    return Mask(found, finest.height / found.shape[0], finest.width / found.shape[1])


def _check_proportions(path: str, shape: tuple[int, int], source: Source) -> None:
    """Refuse an image that would be stretched by more than rounding explains."""
    height, width = shape
    finest = source.levels[0]
    fitting = finest.height * width / finest.width
    if abs(height - fitting) > max(1.5, 0.02 * fitting):
        raise SourceError(
            f"{path}: the mask has {width} x {height} pixels, other proportions than the "
            f"{finest.width} x {finest.height} of {source.path}; export it over the whole image"
        )


def _any_band(image: Any, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Tell where any band but alpha is not 0."""
    from rasterio.enums import ColorInterp

    colours = [
        number
        for number, meaning in zip(image.indexes, image.colorinterp, strict=True)
        if meaning != ColorInterp.alpha
    ]
    return np.asarray(image.read(colours, out_shape=(len(colours), *shape)).any(axis=0), np.bool_)


def _canvas(source: Source, grid: Grid) -> tuple[tuple[int, int], float, float, Any]:
    """Return shape, ratios and affine of a mask that divides each grid cell, by 8 at most.

    A large grid is divided by less, to stay near 64 million pixels.
    """
    from rasterio import Affine

    parts = max(1, min(8, int(math.sqrt(64e6 / (grid.rows * grid.columns)))))
    ratio_y, ratio_x = grid.cell_y / parts, grid.cell_x / parts
    a, b, c, d, e, f = source.transform or (1, 0, 0, 0, 1, 0)
    affine = Affine(a * ratio_x, b * ratio_y, c, d * ratio_x, e * ratio_y, f)
    return (grid.rows * parts, grid.columns * parts), ratio_y, ratio_x, affine


def _integral(values: NDArray[Any], axis: int, bounds: NDArray[Any]) -> NDArray[np.float64]:
    """Integrate pixels along an axis from 0 to each bound."""
    size = values.shape[axis]
    inside = np.clip(bounds, 0, size)
    whole = np.floor(inside).astype(np.intp)
    part = np.expand_dims(inside - whole, 1 - axis)
    total = np.insert(np.cumsum(values, axis=axis, dtype=np.float64), 0, 0, axis=axis)
    low = np.take(total, whole, axis)
    high = np.take(total, np.minimum(whole + 1, size), axis)
    return np.asarray(low + part * (high - low), np.float64)
