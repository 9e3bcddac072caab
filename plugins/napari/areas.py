"""Which part of an image is meant: what the view shows, or what somebody has drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.plugins.napari.world import from_world, world_of_level0
from gigavim.qupath import qupath_origin
from gigavim.sources import Source

Polygon = NDArray[np.float64]
"""Corners (y, x) in the world, shape (n, 2)."""

ELLIPSE_CORNERS = 64
"""Of the polygon that stands for an ellipse."""


def drawn(layer: Any) -> list[Polygon]:
    """Return the areas of a Shapes layer; lines and paths have none."""
    polygons = []
    for shape, kind in zip(layer.data, layer.shape_type, strict=True):
        if kind in ("rectangle", "polygon"):
            polygons.append(_in_world(layer, shape[:, -2:]))
        elif kind == "ellipse":
            # napari has the corners of the box around it.
            centre, turned = shape[:, -2:].mean(0), np.diff(shape[:3, -2:], axis=0) / 2
            angle = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)
            around = np.column_stack([np.cos(angle), np.sin(angle)]) @ turned
            polygons.append(_in_world(layer, centre + around))
    return polygons


def viewed(viewer: Any) -> Polygon:
    """Return what the view shows."""
    camera = viewer.scene.camera
    half = np.asarray(viewer.canvas.size, float) / camera.zoom / 2
    signs = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]])
    return np.asarray(camera.center[-2:] + signs * half)


def geojson(polygons: Sequence[Polygon], source: Source) -> str:
    """Write areas as ``gigavim run --mask`` takes them.

    Parameters
    ----------
    source
        The image: on a slide they are in level-0 pixels as QuPath counts them, on a scene in its
        CRS.
    """
    content: dict[str, Any] = {"type": "FeatureCollection"}
    if source.crs is not None:
        content["crs"] = {"type": "name", "properties": {"name": source.crs}}
        places = [polygon * (-1, 1) for polygon in polygons]
    else:
        assert source.spacing is not None  # else it has no place in the world
        world, (x, y) = world_of_level0(source.spacing), qupath_origin(source)
        places = [from_world(world, polygon) - (y, x) for polygon in polygons]
    content["features"] = [
        {
            "type": "Feature",
            "properties": {"objectType": "annotation"},
            "geometry": {"type": "Polygon", "coordinates": [_ring(place)]},
        }
        for place in places
    ]
    return json.dumps(content)


def _in_world(layer: Any, points: NDArray[Any]) -> Polygon:
    return np.array([layer.data_to_world(point) for point in points], float)


def _ring(places: NDArray[np.float64]) -> list[list[float]]:
    """Return (y, x) places as a closed ring of x and y."""
    ring: list[list[float]] = np.round(places[[*range(len(places)), 0], ::-1], 9).tolist()
    return ring
