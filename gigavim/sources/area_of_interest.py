"""The polygons that a user wants of a scene."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import shapely
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform_geom

from gigavim.errors import SourceError

LONLAT = "OGC:CRS84"
PARTS = 64
"""Edges are bent by a projection: each is at most this part of the extent."""


def read_area(path: str, crs: CRS) -> shapely.Geometry:
    """Read polygons from GeoJSON and bring them to a CRS.

    They are in longitude and latitude (RFC 7946) unless the file names a CRS, as GeoJSON of 2008.

    Raises
    ------
    SourceError
        If the file cannot be read, or holds no polygon.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text)
        area = shapely.union_all(_polygons(shapely.from_geojson(text)))
        own = _crs(content)
        if not area.is_empty:
            extent = max(area.bounds[2] - area.bounds[0], area.bounds[3] - area.bounds[1])
            fine = shapely.segmentize(area, extent / PARTS)
            area = shapely.geometry.shape(transform_geom(own, crs, shapely.geometry.mapping(fine)))
    except (
        OSError, ValueError, TypeError, KeyError, shapely.errors.ShapelyError, CRSError
    ) as error:  # fmt: skip
        raise SourceError(
            f"{path} is no GeoJSON that can be read ({error}); export polygons as GeoJSON"
        ) from error
    if area.is_empty:
        raise SourceError(f"{path} holds no polygon; draw at least one, or leave out --aoi")
    return area


def _polygons(geometry: shapely.Geometry) -> list[shapely.Geometry]:
    """Return the polygons of a geometry, mended, whatever else it holds."""
    parts = shapely.get_parts(shapely.get_parts([geometry]))
    return [shapely.make_valid(part) for part in parts if shapely.get_dimensions(part) == 2]


def _crs(content: Any) -> str:
    named = content.get("crs") if isinstance(content, dict) else None
    return str(named["properties"]["name"]) if named else LONLAT
