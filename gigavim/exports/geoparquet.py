"""The regions of a class map as GeoParquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.exports.place import new_path
from gigavim.exports.regions import regions, to_crs, to_level0
from gigavim.exports.result import Layer, Result
from gigavim.exports.tables import write_parquet


def write_geoparquet(result: Result, path: Path, *, head: str | None = None) -> None:
    """Write a row for each region: class, area, share, mean probability and outline.

    Of a scene, outlines are in its CRS and areas in m², measured in an equal-area projection; of a
    slide, both in µm from the image's top-left corner.
    """
    layer = result.layer(head)
    with new_path(path) as partial:
        write_parquet(partial, _rows(result, layer), layer.registration.crs)


def _rows(result: Result, layer: Layer) -> Iterator[tuple[NDArray[np.object_], dict[str, Any]]]:
    """Yield all regions at once: they were found at once."""
    import shapely

    found, place = regions(result, layer), layer.registration
    if place.crs is not None:
        polygons = to_crs(found.polygons, place)
    else:
        um = np.array([place.spacing.x, place.spacing.y])
        polygons = shapely.transform(to_level0(found.polygons, place), lambda xy: xy * um)
    yield (
        polygons,
        {
            "id": np.arange(len(polygons)),
            "class_id": found.classes,
            "class_name": np.array(("", *layer.names))[found.classes],
            "area_um2" if result.is_slide else "area_m2": found.areas,
            "share": found.shares,
            "score_mean": found.probabilities,
        },
    )
