"""Pixels of which somebody says what they are: a raster of labels, or shapes with classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.features import rasterize
from rasterio.warp import transform_geom
from rasterio.windows import Window

from gigavim.errors import GigavimError
from gigavim.sources.pixel_grid import PixelGrid
from gigavim.sources.raster_source import open_dataset

ROWS = 1024
"""Of pixels that are held at once."""
BLOCKS = 16
"""To a side of a raster of labels: what lies in one is no independent witness."""
VECTORS = (".geojson", ".json", ".gpkg", ".shp", ".fgb", ".parquet")
PROPERTIES = ("classification", "class_name", "class", "label", "name")
"""Of a shape, where its class is looked for."""
LONGITUDE_LATITUDE = "OGC:CRS84"


@dataclass(frozen=True, slots=True)
class Labelled:
    """Some of the pixels that have a label."""

    xs: NDArray[np.float64]
    """Of their centres, in the CRS of the labels."""
    ys: NDArray[np.float64]
    labels: NDArray[np.int64]
    """Index of the class of each."""
    groups: NDArray[np.int64]
    """Of each: the shape, or the block of the raster, that it is in."""


@dataclass(frozen=True)
class GroundTruth:
    """What is known of the ground."""

    classes: tuple[str, ...]
    grid: PixelGrid
    groups: int
    """How many there are at most."""
    source: Any
    """A path of a raster, or shapes in the CRS of the grid, each with the index of its class."""
    numbers: tuple[int, ...] = ()
    """In a raster, of each class."""

    def parts(self) -> Iterator[Labelled]:
        """Yield the pixels that have a label, some rows at a time."""
        grid = self.grid
        for top in range(0, grid.height, ROWS):
            rows = min(ROWS, grid.height - top)
            labels, groups = (
                self._painted(top, rows)
                if isinstance(self.source, Path)
                else self._drawn(top, rows)
            )
            y, x = np.nonzero(labels >= 0)
            xs, ys = grid.transform @ (x + 0.5, y + top + 0.5)
            yield Labelled(xs, ys, labels[y, x], groups[y, x])

    def _painted(self, top: int, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        grid = self.grid
        with open_dataset(str(self.source)) as raster:
            values = raster.read(1, window=Window(0, top, grid.width, rows))
        labels = np.full(values.shape, -1, np.int64)
        for index, number in enumerate(self.numbers):
            labels[values == number] = index
        y, x = np.arange(top, top + rows)[:, None], np.arange(grid.width)
        blocks = y * BLOCKS // grid.height * BLOCKS + x * BLOCKS // grid.width
        return labels, blocks

    def _drawn(self, top: int, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        grid = self.grid
        burnt = [(geometry, number) for number, (geometry, _) in enumerate(self.source)]
        moved = grid.transform @ Affine.translation(0, top)
        groups = rasterize(
            burnt, (rows, grid.width), fill=-1, transform=moved, dtype="int32"
        ).astype(np.int64)
        # The last one is for pixels without a shape.
        classes = np.array([*(index for _, index in self.source), -1])
        return classes[groups], groups


def read_truth(
    path: Path,
    pixels: PixelGrid,
    values: Mapping[str, int] | None = None,
    column: str | None = None,
) -> GroundTruth:
    """Open labels of a scene.

    Parameters
    ----------
    path
        A raster of whole numbers, on any grid and in any CRS; without one it is of the pixels of
        the scene. Or shapes, polygons or points, in GeoJSON or what geopandas reads; they count
        for the scene's pixels whose centres are inside, points for the pixel they are in.
    pixels
        Of the scene.
    values
        The number of each class in a raster; by default each number but nodata, 0 where the file
        has none, is a class.
    column
        Of the shapes, with the class; by default the first there is of `PROPERTIES`.

    Raises
    ------
    GigavimError
        If the file cannot be read, or has no labels.
    """
    if path.suffix.lower() in VECTORS:
        return _shapes(path, pixels, column)
    return _raster(path, pixels, values)


def _raster(path: Path, pixels: PixelGrid, values: Mapping[str, int] | None) -> GroundTruth:
    try:
        with open_dataset(str(path)) as raster:
            grid = PixelGrid(raster.crs, raster.transform, raster.height, raster.width)
            nodata = 0 if raster.nodata is None else raster.nodata
            found = set[int]()
            for top in range(0, grid.height, ROWS):
                part = raster.read(
                    1, window=Window(0, top, grid.width, min(ROWS, grid.height - top))
                )
                found.update(int(value) for value in np.unique(part) if np.isfinite(value))
    except RasterioError as error:
        raise GigavimError(
            f"{path}: cannot be read as labels ({error}); pass a raster, GeoJSON or GPKG"
        ) from error
    if grid.crs is None:
        if (grid.height, grid.width) != (pixels.height, pixels.width):
            raise GigavimError(
                f"{path} has no CRS, and with {grid.width} x {grid.height} pixels not the size of "
                f"the scene, {pixels.width} x {pixels.height}; give it a CRS"
            )
        grid = pixels
    known = values or {f"class {number}": number for number in sorted(found) if number != nodata}
    if not found.intersection(known.values()):
        raise GigavimError(
            f"{path}: has none of {dict(known) or 'any class'}; its numbers are "
            f"{', '.join(map(str, sorted(found)[:20]))}: name them with --values NAME=NUMBER,..."
        )
    return GroundTruth(tuple(known), grid, BLOCKS**2, path, tuple(known.values()))


def _shapes(path: Path, pixels: PixelGrid, column: str | None) -> GroundTruth:
    if pixels.crs is None:
        raise GigavimError(f"{path}: shapes are laid on a scene by its CRS, and it has none")
    try:
        drawn, crs = _of_geojson(path) if "json" in path.suffix.lower() else _of_table(path)
        named = [(each["geometry"], _class(each["properties"] or {}, column)) for each in drawn]
        named = [(geometry, name) for geometry, name in named if geometry is not None and name]
        moved = [transform_geom(crs, pixels.crs, geometry) for geometry, _ in named]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, CRSError) as error:
        raise GigavimError(f"{path}: cannot be read as shapes with classes ({error})") from error
    if not named:
        columns = sorted({name for each in drawn for name in each["properties"] or {}})
        raise GigavimError(
            f"{path}: none of its {len(drawn)} shapes has a class; name the column with --column: "
            f"{', '.join(columns)}"
        )
    classes = tuple(sorted({name for _, name in named}))
    shapes = [
        (geometry, classes.index(name)) for geometry, (_, name) in zip(moved, named, strict=True)
    ]
    return GroundTruth(classes, pixels, len(shapes), shapes)


def _of_geojson(path: Path) -> tuple[list[dict[str, Any]], str]:
    content = json.loads(path.read_text(encoding="utf-8"))
    crs = content["crs"]["properties"]["name"] if "crs" in content else LONGITUDE_LATITUDE
    return content["features"], crs


def _of_table(path: Path) -> tuple[list[dict[str, Any]], Any]:
    try:
        import geopandas  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise GigavimError(
            f"{path}: {path.suffix} needs: pip install geopandas; GeoJSON is read without"
        ) from error
    read = geopandas.read_parquet if path.suffix.lower() == ".parquet" else geopandas.read_file
    table = read(path)
    if table.crs is None:
        raise GigavimError(f"{path} has no CRS; give it one")
    return list(table.iterfeatures(na="null")), CRS.from_wkt(table.crs.to_wkt())


def _class(properties: Mapping[str, Any], column: str | None) -> str:
    """Return the name of a shape's class, empty if it has none."""
    if column is not None:
        return str(properties.get(column) or "")
    given = next((properties[name] for name in PROPERTIES if properties.get(name)), "")
    return str(given.get("name", "") if isinstance(given, Mapping) else given)
