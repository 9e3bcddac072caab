"""The regions of a class map as polygons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.exports.result import Layer, Result
from gigavim.georeference import Registration

TOLERANCE = 0.75
"""In cells: stairs of one cell become slopes, and what is longer keeps its corners."""
EQUAL_AREA = "EPSG:6933"
"""Cylindrical, of WGS 84, in metres."""
LONGITUDE_LATITUDE = "EPSG:4326"

Polygons = NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Regions:
    """Cells of one class that share sides, a row for each region."""

    polygons: Polygons
    """x and y in cells, from the outer corner of the first one."""
    classes: NDArray[np.uint8]
    """From 1 on."""
    areas: NDArray[np.float64]
    """Of the cells, in µm² for a slide and m² for a scene; NaN where pixels have no known size."""
    shares: NDArray[np.float64]
    """Of the cells of all regions."""
    probabilities: NDArray[np.float64]
    """Mean over the cells of the probability of the region's class; NaN where there are none."""
    numbers: NDArray[np.int32]
    """Of each cell, 1 more than the row of its region; 0 for none, shape (rows, columns)."""


def regions(result: Result, layer: Layer) -> Regions:
    """Find the regions of a class map, their outlines simplified together.

    A border between two regions is one line for both, so that neither gaps nor overlaps arise
    (Visvalingam and Whyatt's algorithm on a coverage, as GEOS has it).
    """
    import shapely
    from rasterio.features import shapes
    from skimage.measure import label

    labels = np.asarray(layer.levels[0][...])
    numbers = label(labels, background=0, connectivity=1).astype(np.int32)  # type: ignore[no-untyped-call]
    count = int(numbers.max(initial=0))
    exact = np.empty(count, object)
    for shape, number in shapes(numbers, numbers > 0, connectivity=4):
        exact[int(number) - 1] = shapely.geometry.shape(shape)
    # A neighbour's corner in the middle of a straight side must be a corner of both.
    exact = shapely.transform(shapely.segmentize(exact, 1.0), np.rint)
    cells = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    classes = np.zeros(count + 1, np.uint8)
    classes[numbers.ravel()] = labels.ravel()
    return Regions(
        _simplify(exact, cells),
        classes[1:],
        _areas(exact, layer.registration),
        cells / max(1, cells.sum()),
        _mean_probabilities(result, layer, numbers, classes[1:]),
        numbers,
    )


def to_level0(polygons: Polygons, registration: Registration) -> Polygons:
    """Return polygons of cells in level-0 pixels."""
    import shapely

    size = np.array([registration.cell_x, registration.cell_y])
    corner = np.array([registration.corner_x, registration.corner_y])
    moved: Polygons = shapely.transform(polygons, lambda xy: xy * size + corner)
    return moved


def to_crs(polygons: Polygons, registration: Registration, crs: str | None = None) -> Polygons:
    """Return polygons of cells in a CRS, that of the scene if none is given."""
    import shapely
    from rasterio.warp import transform

    a, b, c, d, e, f = _cell_transform(registration)

    def project(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        own: NDArray[np.float64] = xy @ np.array([[a, d], [b, e]]) + (c, f)
        if crs is None:
            return own
        return np.column_stack(transform(registration.crs, crs, own[:, 0], own[:, 1]))

    projected: Polygons = shapely.transform(polygons, project)
    return projected


def _simplify(exact: Polygons, cells: NDArray[np.integer[Any]]) -> Polygons:
    """Simplify all outlines together; single cells stay squares."""
    import shapely

    alone = np.flatnonzero(cells == 1)
    # Where three regions meet, a corner stays: so a cell is simplified as four triangles.
    centres = shapely.get_coordinates(shapely.centroid(exact[alone]))
    corners = shapely.get_coordinates(exact[alone]).reshape(-1, 5, 2)
    rings = np.stack(
        [corners[:, :-1], corners[:, 1:], np.broadcast_to(centres[:, None], (len(alone), 4, 2))], 2
    )
    parts = np.concatenate([np.delete(exact, alone), shapely.polygons(rings.reshape(-1, 3, 2))])
    simple = np.empty(len(exact), object)
    simple[alone] = exact[alone]
    others = np.delete(np.arange(len(exact)), alone)
    simple[others] = shapely.coverage_simplify(parts, TOLERANCE)[: len(others)]
    return simple


def _areas(exact: Polygons, registration: Registration) -> NDArray[np.float64]:
    """Return areas before simplification."""
    import shapely

    if registration.spacing.unit == "µm":
        height, width = registration.scale
        return np.asarray(shapely.area(exact) * (height * width))
    if registration.crs is None or registration.transform is None:
        return np.full(len(exact), np.nan)
    return np.asarray(shapely.area(to_crs(exact, registration, EQUAL_AREA)))


def _mean_probabilities(
    result: Result, layer: Layer, numbers: NDArray[np.int32], classes: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Return the mean probability of each region's class over its cells."""
    if layer.name != "classify":
        return np.full(len(classes), np.nan)
    sums, counts = (np.zeros(len(classes) + 1) for _ in range(2))
    for part in result.patches().parts():
        if part.probs is None:
            return np.full(len(classes), np.nan)
        region = numbers[part.index[:, 0], part.index[:, 1]]
        inside = region > 0
        own = part.probs[inside, classes[region[inside] - 1].astype(np.intp) - 1]
        sums += np.bincount(region[inside], own, len(sums))
        counts += np.bincount(region[inside], minlength=len(sums))
    return np.asarray(sums[1:] / np.maximum(counts[1:], 1))


def _cell_transform(registration: Registration) -> tuple[float, ...]:
    transform = registration.cell_transform
    if transform is None:
        raise ValueError("pixels without a transform have no place in a CRS")
    return transform
