"""How large the cells of a map are in the world, for the area that each class has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.georeference import Registration

EQUATOR = 6_378_137.0
"""Semi-major axis of WGS 84, in metres."""
ECCENTRICITY = 0.081819190842622
"""Of WGS 84."""


@dataclass(frozen=True, slots=True)
class CellAreas:
    """Areas of the cells of a map; they are the same within a row."""

    of_row: NDArray[np.float64] | None
    """Shape (rows,); None where they are not known."""
    unit: str | None
    """``mm²`` for a slide, ``km²`` for a scene."""
    unknown: str | None = None
    """Why they are not known."""


def cell_areas(registration: Registration, rows: int, height: int | None = None) -> CellAreas:
    """Return the area of a cell of each row.

    Of micrometres and of projected metres the product of the sides, of degrees the area between
    two parallels of the ellipsoid of WGS 84. Mercator's projections enlarge areas with latitude,
    twice at 45°: there, as where the CRS is not known, areas stay unknown.

    Parameters
    ----------
    height
        Of the image, in level-0 pixels: what of the last row lies beyond it does not count.
    """
    tops = registration.corner_y + np.arange(rows + 1) * registration.cell_y
    if height is not None:
        tops = np.minimum(tops, height)
    spacing, transform = registration.spacing, registration.transform
    share = np.diff(tops) / registration.cell_y
    side_y, side_x = registration.scale
    if spacing.unit == "µm":
        return CellAreas(share * side_y * side_x / 1e6, "mm²")
    if registration.crs is None or transform is None:
        return _unknown("the image has no CRS")
    import rasterio.crs

    crs = rasterio.crs.CRS.from_wkt(registration.crs)
    a, b, _, d, e, f = transform
    if crs.is_geographic:
        if b or d:
            return _unknown("the image is turned against the parallels")
        width = abs(a) * registration.cell_x
        return CellAreas(abs(np.diff(_below(f + e * tops))) * math.radians(width) / 1e6, "km²")
    if str(crs.to_dict().get("proj")) in ("merc", "webmerc"):
        return _unknown("Mercator's projection enlarges areas")
    metres = float(crs.units_factor[1])
    cell = abs(a * e - b * d) * registration.cell_y * registration.cell_x * metres**2
    return CellAreas(share * cell / 1e6, "km²")


def _unknown(why: str) -> CellAreas:
    return CellAreas(None, None, why)


def _below(latitude: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the area between equator and parallels, in m² for a radian of longitude.

    Snyder 1987, Map projections: a working manual, formula 3-12.
    """
    sine, e = np.sin(np.radians(latitude)), ECCENTRICITY
    q = sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e
    return np.asarray(EQUATOR**2 * (1 - e**2) / 2 * q)
