"""Where the pixels of a raster lie, and the grid that all bands of a scene are read on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import shapely
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import calculate_default_transform, transform_bounds

from gigavim.errors import SourceError

EXACT = 1e-3
"""Pixels that lie this close to those of another grid, in pixels, are the same."""

TORN = 4
"""A scene across the antimeridian or a pole would have this many times its pixels, or a part."""


@dataclass(frozen=True, slots=True)
class PixelGrid:
    """Rows and columns of pixels in a CRS."""

    crs: CRS | None
    transform: Affine
    """Pixel corners to the CRS."""
    height: int
    width: int

    @property
    def pixel_area(self) -> float:
        """Area of a pixel, in square units of the CRS."""
        return abs(float(self.transform.determinant))

    @property
    def is_turned(self) -> bool:
        """Whether rows do not run from west to east."""
        return bool(self.transform.b or self.transform.d)

    @property
    def is_upright(self) -> bool:
        """Whether north is up and east is right."""
        return not self.is_turned and self.transform.a > 0 > self.transform.e

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north."""
        corners = [self.transform @ (x, y) for x in (0, self.width) for y in (0, self.height)]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def reduced(self, factor: float) -> PixelGrid:
        """Return the grid whose pixels are ``factor`` times as high and wide."""
        return PixelGrid(
            self.crs,
            self.transform @ Affine.scale(factor),
            math.ceil(self.height / factor - EXACT),
            math.ceil(self.width / factor - EXACT),
        )

    def offset_in(self, other: PixelGrid) -> tuple[int, int] | None:
        """Return the row and column of another grid at which this starts, if pixels are the same.

        >>> utm = CRS.from_epsg(32633)
        >>> whole = PixelGrid(utm, Affine(10, 0, 5e5, 0, -10, 6e6), 100, 100)
        >>> PixelGrid(utm, Affine(10, 0, 5e5 + 70, 0, -10, 6e6 - 20), 5, 5).offset_in(whole)
        (2, 7)
        """
        if self.crs != other.crs:
            return None
        there = ~other.transform @ self.transform
        column, row = round(there.c), round(there.f)
        for x, y in ((0, 0), (self.width, 0), (0, self.height)):
            at_x, at_y = there @ (x, y)
            if abs(at_x - x - column) > EXACT or abs(at_y - y - row) > EXACT:
                return None
        return row, column

    def cropped(self, bounds: tuple[float, float, float, float]) -> PixelGrid | None:
        """Return the whole pixels of an upright grid that bounds touch; None if none."""
        west, south, east, north = bounds
        inverse = ~self.transform
        (x0, y0), (x1, y1) = inverse @ (west, north), inverse @ (east, south)
        left, right = max(0, math.floor(x0 + EXACT)), min(self.width, math.ceil(x1 - EXACT))
        top, bottom = max(0, math.floor(y0 + EXACT)), min(self.height, math.ceil(y1 - EXACT))
        if left >= right or top >= bottom:
            return None
        moved = self.transform @ Affine.translation(left, top)
        return PixelGrid(self.crs, moved, bottom - top, right - left)


def upright_grid(own: PixelGrid, crs: CRS | None, path: str) -> PixelGrid:
    """Return a north-up grid over another, in its CRS or any, at about its resolution.

    Raises
    ------
    SourceError
        If the grid lies nowhere, or the other CRS would tear it.
    """
    is_same = crs is None or crs == own.crs
    if is_same and own.is_upright:
        return own
    if is_same and not own.is_turned:
        west, _, _, north = own.bounds
        a, e = abs(own.transform.a), -abs(own.transform.e)
        return PixelGrid(own.crs, Affine(a, 0, west, 0, e, north), own.height, own.width)
    if own.crs is None:
        raise SourceError(
            f"{path} has no CRS and cannot be brought to another; "
            "give it one with gdal_edit.py -a_srs EPSG:..., or leave out --crs"
        )
    corners = [
        GroundControlPoint(row, column, *(own.transform @ (column, row)), 0)
        for row in (0, own.height)
        for column in (0, own.width)
    ]
    try:
        transform, columns, rows = calculate_default_transform(
            own.crs, crs or own.crs, own.width, own.height, gcps=corners
        )
    except RasterioError as error:
        raise SourceError(
            f"{path} cannot be brought to {_name(crs)} ({error}); choose a --crs made for its place"
        ) from error
    grid = PixelGrid(crs or own.crs, transform, rows or 0, columns or 0)
    growth = grid.height * grid.width / (own.height * own.width)
    if _is_at_the_edge(own) and not 1 / TORN < growth < TORN:
        raise SourceError(
            f"{path} lies across the antimeridian or a pole, where {_name(grid.crs)} tears it; "
            "choose a --crs made for its place, or leave it out"
        )
    return grid


def _is_at_the_edge(grid: PixelGrid) -> bool:
    """Whether a grid reaches over the antimeridian or holds a pole."""
    west, south, east, north = transform_bounds(grid.crs, "OGC:CRS84", *grid.bounds)
    return bool(west > east or east - west > 350 or max(north, -south) >= 90)


def crop(
    grid: PixelGrid,
    bounds: tuple[float, float, float, float] | None,
    area: shapely.Geometry | None,
    path: str,
) -> PixelGrid:
    """Cut a grid to what is asked for, in its own CRS.

    Raises
    ------
    SourceError
        If that is nowhere in the scene.
    """
    for asked, what in ((bounds, "--bounds"), (area and tuple(area.bounds), "--aoi")):
        if asked is None:
            continue
        west, south, east, north = asked
        cropped = grid.cropped((west, south, east, north))
        if cropped is None:
            raise SourceError(
                f"{path}: {what} {_numbers(asked)} covers none of the scene, "
                f"which lies in {_numbers(grid.bounds)} ({_name(grid.crs)})"
            )
        grid = cropped
    return grid


def check_crs(grids: Sequence[tuple[str, PixelGrid]], path: str) -> None:
    """Refuse bands that lie in several CRSs."""
    name, first = grids[0]
    for other_name, other in grids[1:]:
        if other.crs != first.crs:
            raise SourceError(
                f"{path}: {name} is in {_name(first.crs)} and {other_name} in "
                f"{_name(other.crs)}; say which one to read in with --crs"
            )


def check_extents(grids: Sequence[tuple[str, PixelGrid]], path: str) -> None:
    """Refuse bands that do not cover the same ground.

    A pixel of the coarser one more or less is no difference: Landsat's panchromatic band is cut so.
    """
    name, first = grids[0]
    for other_name, other in grids[1:]:
        slack = math.sqrt(max(first.pixel_area, other.pixel_area)) * (1 + EXACT)
        gaps = [abs(a - b) for a, b in zip(first.bounds, other.bounds, strict=True)]
        if max(gaps) > slack:
            raise SourceError(
                f"{path}: {name} covers {_numbers(first.bounds)} and {other_name} "
                f"{_numbers(other.bounds)}; say which part to read with --bounds{_shared(grids)}"
            )


def _shared(grids: Sequence[tuple[str, PixelGrid]]) -> str:
    """Say what all grids cover, as an option takes it; nothing where that is nothing."""
    wests, souths, easts, norths = zip(*(grid.bounds for _, grid in grids), strict=True)
    west, south, east, north = max(wests), max(souths), min(easts), min(norths)
    if west >= east or south >= north:
        return ""
    return f": all cover {_numbers((west, south, east, north)).replace(' ', '')}"


def parse_crs(text: str) -> CRS:
    """Read a CRS.

    Raises
    ------
    SourceError
        If it is none.
    """
    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise SourceError(f"{text!r} is no CRS; write an EPSG code, as in EPSG:32633") from error


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.9g}" for value in values)


def _name(crs: CRS | None) -> str:
    return "no CRS" if crs is None else str(crs.to_string())
