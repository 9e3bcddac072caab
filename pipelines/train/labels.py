"""Classes drawn or painted on an image, brought to the patches whose centres lie under them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.warp import reproject
from rasterio.windows import Window

from gigavim.annotations import NONE, annotated_cells, read_annotations
from gigavim.errors import GigavimError
from gigavim.geometry import Grid
from gigavim.sources import Source

logger = logging.getLogger(__name__)

__all__ = ["NONE", "PatchLabels", "read_labels"]


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
        GeoJSON, as `read_annotations` reads it. A polygon counts for the patches whose centres are
        inside of it, a line for those that it touches; where shapes overlap, the last one counts.
        Or a raster of whole numbers: by its CRS where it and the image have one, else stretched
        over the whole image. Its nodata value, 0 where it has none, is no class.
    values
        The number of each class in rasters; by default each number is a class.

    Raises
    ------
    GigavimError
        If the file cannot be read, or holds no class on the image. Shapes that are beyond the
        image or have no class are left out, with a warning.
    """
    if path.suffix.lower() in {".geojson", ".json"}:
        return _drawn(path, source, grid)
    return _painted(path, source, grid, values)


def _drawn(path: Path, source: Source, grid: Grid) -> PatchLabels:
    annotations, left_out = read_annotations(path, source)
    for line in left_out:
        logger.warning("%s", line)
    names = tuple(sorted({each.name for each in annotations}))
    index = np.array([*(names.index(each.name) for each in annotations), NONE])
    colours = {
        each.name: "#" + bytes(each.colour).hex() for each in annotations if each.colour is not None
    }
    return PatchLabels(names, index[annotated_cells(annotations, grid)], colours)


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
