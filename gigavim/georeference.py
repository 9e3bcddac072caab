"""Where the cells of a map lie in the world.

A map has one cell per patch. Two conventions meet here, half a pixel apart: an affine transform
maps *corners*, (0, 0) being the outer corner of the first pixel; NGFF maps array indices, which are
pixel *centres*.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.geometry import Grid, Spacing
from gigavim.sources.source import Source

Transform = tuple[float, float, float, float, float, float]
"""x = a * column + b * row + c, y = d * column + e * row + f, counted from the outer corner."""

# https://github.com/zarr-conventions, v0.1; readers know a convention by its uuid.
_CONVENTIONS = [
    {
        "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "name": "proj",
        "spec_url": "https://github.com/zarr-conventions/proj/blob/v0.1/README.md",
        "description": "Coordinate reference system information for geospatial data",
    },
    {
        "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        "name": "spatial",
        "spec_url": "https://github.com/zarr-conventions/spatial/blob/v0.1/README.md",
        "description": "Spatial coordinate information",
    },
]


@dataclass(frozen=True, slots=True)
class Registration:
    """How one cell of a map relates to level 0 of its image, and that to the world."""

    cell_y: float
    """Height of a cell, in level-0 pixels."""
    cell_x: float
    """Width of a cell, in level-0 pixels."""
    spacing: Spacing
    """Of level 0."""
    corner_y: float = 0.0
    """Top of the first cell, in level-0 pixels."""
    corner_x: float = 0.0
    """Left of the first cell, in level-0 pixels."""
    crs: str | None = None
    """As WKT, for a scene."""
    transform: Transform | None = None
    """Level-0 pixels to the CRS, for a scene."""

    @classmethod
    def of(cls, grid: Grid, source: Source) -> Registration:
        """Register maps over a grid: a cell is a stride wide and lies in the middle of its patch.

        Raises
        ------
        ValueError
            If the source does not know its spacing.
        """
        if source.spacing is None:
            raise ValueError(f"{source.path} has no spacing to register a map with")
        return cls(
            cell_y=grid.cell_y,
            cell_x=grid.cell_x,
            spacing=source.spacing,
            corner_y=grid.corner_y,
            corner_x=grid.corner_x,
            crs=source.crs,
            transform=source.transform,
        )

    def reduced(self, factor: int) -> Registration:
        """Return the registration of a map whose cells join ``factor`` x ``factor`` of these."""
        return replace(self, cell_y=self.cell_y * factor, cell_x=self.cell_x * factor)

    @property
    def scale(self) -> tuple[float, float]:
        """Height and width of a cell, in the unit of the spacing."""
        return self.cell_y * self.spacing.y, self.cell_x * self.spacing.x

    @property
    def translation(self) -> tuple[float, float]:
        """Where the centre of the first cell lies, from the centre of the first level-0 pixel."""
        return (
            (self.corner_y + (self.cell_y - 1) / 2) * self.spacing.y,
            (self.corner_x + (self.cell_x - 1) / 2) * self.spacing.x,
        )

    @property
    def cell_transform(self) -> Transform | None:
        """Cells to the CRS.

        >>> metres = Spacing(10, 10, "metre", "transform")
        >>> utm = (10, 0, 5e5, 0, -10, 6e6)
        >>> Registration(16, 16, metres, transform=utm).cell_transform
        (160, 0, 500000.0, 0, -160, 6000000.0)
        """
        if self.transform is None:
            return None
        a, b, _, d, e, _ = self.transform
        x, y = _project(self.transform, self.corner_x, self.corner_y)
        return (a * self.cell_x, b * self.cell_y, x, d * self.cell_x, e * self.cell_y, y)


def geo_attributes(crs: str, transform: Transform, shape: tuple[int, int]) -> dict[str, Any]:
    """Return the attributes by which an array with dimensions ``y`` and ``x`` says where it lies.

    The ``proj`` and ``spatial`` conventions of GeoZarr.

    Parameters
    ----------
    crs
        As WKT.
    transform
        Indices of the array to the CRS.
    shape
        Rows and columns.
    """
    import rasterio.crs

    reference = rasterio.crs.CRS.from_wkt(crs)
    authority = reference.to_authority()
    height, width = shape
    corners = [_project(transform, x, y) for x in (0, width) for y in (0, height)]
    xs, ys = zip(*corners, strict=True)
    return {
        "zarr_conventions": _CONVENTIONS,
        "proj:wkt2": reference.to_wkt(version="WKT2_2019"),
        **({"proj:code": ":".join(authority)} if authority else {}),
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(transform),
        "spatial:shape": [height, width],
        "spatial:bbox": [min(xs), min(ys), max(xs), max(ys)],
        "spatial:registration": "pixel",
    }


def grid_mapping(crs: str, transform: Transform) -> dict[str, Any]:
    """Return the attributes of CF's ``spatial_ref``: the CRS, and GDAL's ``GeoTransform``."""
    a, b, c, d, e, f = transform
    return {
        "crs_wkt": crs,
        "spatial_ref": crs,
        "GeoTransform": f"{c!r} {a!r} {b!r} {f!r} {d!r} {e!r}",
    }


def cell_centres(
    transform: Transform, shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return y of every row and x of every column, at their centres; None if the map is turned."""
    a, b, c, d, e, f = transform
    if b or d:
        return None
    height, width = shape
    rows, columns = np.arange(height, dtype=np.float64), np.arange(width, dtype=np.float64)
    return f + e * (rows + 0.5), c + a * (columns + 0.5)


def _project(transform: Transform, x: float, y: float) -> tuple[float, float]:
    """Apply an affine transform."""
    a, b, c, d, e, f = transform
    return a * x + b * y + c, d * x + e * y + f
