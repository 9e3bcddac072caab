"""Classes drawn or painted on an image, brought to the patches whose centres lie under them."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.features import rasterize
from rasterio.warp import reproject, transform_geom
from rasterio.windows import Window
from shapely import GEOSException, box
from shapely.affinity import affine_transform
from shapely.geometry import shape

from gigavim.errors import GigavimError
from gigavim.geometry import Grid
from gigavim.sources import Source

logger = logging.getLogger(__name__)

NONE = -1
"""The label of a patch that has none."""
LONGITUDE_LATITUDE = "OGC:CRS84"
"""What GeoJSON is in by RFC 7946."""


@dataclass(frozen=True)
class PatchLabels:
    """What an annotation says of the patches of a grid."""

    names: tuple[str, ...]
    layout: NDArray[np.int64]
    """Index among the names, `NONE` where no class is, shape (rows, columns)."""
    colours: Mapping[str, str]
    """As ``#rrggbb``, of classes to which the file gives one."""


def read_labels(
    path: Path, source: Source, grid: Grid, values: Mapping[str, int] | None = None
) -> PatchLabels:
    """Read the class of each patch from a file.

    Parameters
    ----------
    path
        GeoJSON polygons whose properties have a ``classification`` with a ``name``, as QuPath
        writes them, or a ``class``. They are in the CRS that the file names; else in that of the
        scene, in longitude and latitude, or in level-0 pixels: in which most of them lie on the
        image. Where polygons overlap, the last one counts. Or a raster of whole numbers: by its CRS
        where it and the image have one, else stretched over the whole image. Its nodata value, 0
        where it has none, is no class.
    values
        The number of each class in rasters; by default each number is a class.

    Raises
    ------
    GigavimError
        If the file cannot be read, or holds no class on the image. Polygons that are beyond the
        image or have no class are left out, with a warning.
    """
    if path.suffix.lower() in {".geojson", ".json"}:
        return _drawn(path, source, grid)
    return _painted(path, source, grid, values)


def _drawn(path: Path, source: Source, grid: Grid) -> PatchLabels:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        features = [each for each in _features(content) if shape(each["geometry"]).area > 0]
        named = [(each["geometry"], _class_of(each["properties"] or {})) for each in features]
        named_crs = isinstance(content, dict) and "crs" in content
        crs = content["crs"]["properties"]["name"] if named_crs else None
        drawn = [(geometry, name, colour) for geometry, (name, colour) in named if name]
        shapes = _on_level_0([geometry for geometry, _, _ in drawn], crs, source)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, GEOSException) as error:
        raise GigavimError(
            f"{path}: not GeoJSON features ({error}); export annotations as a FeatureCollection"
        ) from error
    if len(drawn) < len(named):
        logger.warning(
            "%s: %d of %d polygons have no class and are left out",
            path, len(named) - len(drawn), len(named),
        )  # fmt: skip
    image = _outline(source)
    inside = [number for number, each in enumerate(shapes) if shape(each).intersects(image)]
    if not inside:
        finest = source.levels[0]
        raise GigavimError(
            f"{path}: none of its {len(drawn)} polygons with a class lies on {source.path} "
            f"({finest.width} x {finest.height} pixels); draw them in pixels of level 0 or in a CRS"
        )
    if len(inside) < len(drawn):
        logger.warning(
            "%s: %d of %d polygons lie outside %s and are left out",
            path, len(drawn) - len(inside), len(drawn), source.path,
        )  # fmt: skip
    names = tuple(sorted({drawn[number][1] for number in inside}))
    # A cell's centre is the centre of its patch, and GDAL burns what has its centre inside.
    layout = rasterize(
        [(shapes[number], names.index(drawn[number][1])) for number in inside],
        grid.shape,
        fill=NONE,
        transform=_cells(grid),
        dtype=np.int32,
    )
    colours = {name: colour for _, name, colour in drawn if colour}
    return PatchLabels(names, layout.astype(np.int64), colours)


def _features(content: Any) -> Iterator[dict[str, Any]]:
    """Walk over features, in a collection, a bare list or alone; those without a shape are none."""
    if isinstance(content, list):
        for part in content:
            yield from _features(part)
    elif content["type"] == "FeatureCollection":
        yield from _features(content["features"])
    elif content["type"] != "Feature":
        raise ValueError(f"a {content['type']} has no class")
    elif content["geometry"] is not None:
        yield content


def _class_of(properties: Mapping[str, Any]) -> tuple[str, str]:
    """Return name and colour, each empty where there is none."""
    given = properties.get("classification") or properties.get("class") or ""
    if not isinstance(given, Mapping):
        return str(given), ""
    colour = given.get("color")
    if colour is None and "colorRGB" in given:  # QuPath before 0.4: one signed integer
        colour = [given["colorRGB"] >> shift & 255 for shift in (16, 8, 0)]
    return str(given.get("name") or ""), "" if colour is None else "#" + bytes(colour[:3]).hex()


def _on_level_0(polygons: list[Any], crs: str | None, source: Source) -> list[Any]:
    """Return polygons in level-0 pixels."""
    if source.crs is None or source.transform is None:
        return polygons
    a, b, c, d, e, f = source.transform
    to_pixels = ~Affine(a, b, c, d, e, f)

    def brought(origin: str) -> list[Any]:
        return [
            _moved(transform_geom(origin, source.crs, polygon), to_pixels) for polygon in polygons
        ]

    if crs is not None:
        return brought(crs)
    image = _outline(source)
    readings = [brought(source.crs)]
    if all(_is_on_earth(polygon) for polygon in polygons):
        readings.append(brought(LONGITUDE_LATITUDE))
    # Last, since degrees are small numbers that lie on an image as pixels too.
    readings.append(polygons)
    return max(readings, key=lambda each: sum(shape(one).intersects(image) for one in each))


def _moved(geometry: Mapping[str, Any], affine: Affine) -> Any:
    a, b, c, d, e, f = affine[:6]
    return affine_transform(shape(geometry), [a, b, d, e, c, f]).__geo_interface__


def _is_on_earth(polygon: Any) -> bool:
    west, south, east, north = shape(polygon).bounds
    return bool(west >= -180 and east <= 180 and south >= -90 and north <= 90)


def _outline(source: Source) -> Any:
    finest = source.levels[0]
    return box(0, 0, finest.width, finest.height)


def _cells(grid: Grid, source: Source | None = None) -> Affine:
    """Return the affine from cells of a grid to level-0 pixels, or on to the CRS of a source."""
    a, b, c, d, e, f = (source and source.transform) or (1, 0, 0, 0, 1, 0)
    x, y = grid.corner_x, grid.corner_y
    return Affine(
        a * grid.cell_x, b * grid.cell_y, a * x + b * y + c,
        d * grid.cell_x, e * grid.cell_y, d * x + e * y + f,
    )  # fmt: skip


def _painted(
    path: Path, source: Source, grid: Grid, values: Mapping[str, int] | None
) -> PatchLabels:
    try:
        with warnings.catch_warnings():
            # A plain PNG has no georeference, and needs none.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as image:
                fill = 0 if image.nodata is None else image.nodata
                numbers = np.full(grid.shape, fill, np.float64)
                if image.crs is not None and source.crs is not None:
                    reproject(
                        rasterio.band(image, 1), numbers, src_nodata=fill, dst_nodata=fill,
                        dst_transform=_cells(grid, source), dst_crs=source.crs,
                        resampling=Resampling.nearest,
                    )  # fmt: skip
                else:
                    _check_proportions(path, image.shape, source)
                    _sample(image, source, grid, numbers)
    except RasterioError as error:
        raise GigavimError(
            f"{path}: cannot be read as labels ({error}); pass GeoJSON, PNG or TIFF"
        ) from error
    found = sorted({int(number) for number in np.unique(numbers) if number != fill})
    chosen = values or {f"class {number}": number for number in found}
    names = tuple(sorted(name for name, number in chosen.items() if number in found))
    if not names:
        raise GigavimError(
            f"{path}: has no class under a patch of {source.path}; it has the numbers "
            f"{', '.join(map(str, found)) or 'of nothing'}, and classes are "
            f"{dict(chosen) or 'all but nodata'}"
        )
    layout = np.full(grid.shape, NONE, np.int64)
    for index, name in enumerate(names):
        layout[numbers == chosen[name]] = index
    return PatchLabels(names, layout, {})


def _sample(image: Any, source: Source, grid: Grid, numbers: NDArray[np.float64]) -> None:
    """Take the pixel under the centre of each cell, of an image over all of the source."""
    finest = source.levels[0]
    y = (grid.corner_y + (np.arange(grid.rows) + 0.5) * grid.cell_y) / finest.height
    x = (grid.corner_x + (np.arange(grid.columns) + 0.5) * grid.cell_x) / finest.width
    columns = (x[x < 1] * image.width).astype(np.intp)
    # Line by line: labels as large as a slide do not fit in memory.
    for row in np.flatnonzero(y < 1):
        line = image.read(1, window=Window(0, int(y[row] * image.height), image.width, 1))[0]
        numbers[row, : len(columns)] = line[columns]


def _check_proportions(path: Path, size: tuple[int, int], source: Source) -> None:
    """Refuse labels that would be stretched by more than rounding explains."""
    height, width = size
    finest = source.levels[0]
    fitting = finest.height * width / finest.width
    if abs(height - fitting) > max(1.5, 0.02 * fitting):
        raise GigavimError(
            f"{path}: the labels have {width} x {height} pixels, other proportions than the "
            f"{finest.width} x {finest.height} of {source.path}; export them over the whole image"
        )
