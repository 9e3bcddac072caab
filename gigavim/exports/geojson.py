"""GeoJSON: for QuPath in level-0 pixels, for maps in longitude and latitude."""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gigavim.errors import GigavimError
from gigavim.exports.place import new_path
from gigavim.exports.regions import LONGITUDE_LATITUDE, regions, to_crs, to_level0
from gigavim.exports.result import NUCLEI, ROWS_AT_ONCE, Layer, Result

Objects = Literal["regions", "tiles"]
Described = tuple[list[NDArray[np.float64]], dict[str, Any]]
"""Rings of a polygon, the outer one first, and the properties of the feature."""

# After the point: a hundredth of a pixel, a centimetre on the ground.
_PIXEL_DIGITS, _DEGREE_DIGITS = 2, 7
_BOUNDS = ("x", "y", "width", "height")


def write_geojson(
    result: Result, path: Path, *, head: str | None = None, objects: Objects = "regions"
) -> None:
    """Write the regions of a class map, and nuclei where there are any.

    Of a slide, a file that QuPath imports: regions are annotations, tiles are tiles and nuclei
    detections, each with class, colour and measurements, in level-0 pixels, less the corner of
    what QuPath shows (`qupath_corner`). Of a scene, longitudes and latitudes (RFC 7946).

    Parameters
    ----------
    path
        What ends in ``.gz`` is compressed.
    head
        Of the class map; the one that says most if None.
    objects
        ``tiles`` writes a square for each patch instead of regions.
    """
    layer = result.layer(head)
    shift = np.array((0, 0) if _in_degrees(layer) else qupath_corner(result))
    image = uuid.UUID(result.about["source"]["fingerprint"])
    digits = _DEGREE_DIGITS if _in_degrees(layer) else _PIXEL_DIGITS
    described = _tiles(result, layer) if objects == "tiles" else _regions(result, layer)
    if result.has_nuclei and objects == "regions":
        described = chain(described, _nuclei(result))
    with (
        new_path(path) as partial,
        gzip.open(partial, "wb") if path.suffix == ".gz" else partial.open("wb") as file,
    ):
        file.write(b'{"type": "FeatureCollection", "features": [')
        separator = b"\n"
        for number, (rings, properties) in enumerate(described):
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(image, str(number))),
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [(ring - shift).round(digits).tolist() for ring in rings],
                },
                "properties": properties,
            }
            file.write(separator + json.dumps(feature, ensure_ascii=False).encode())
            separator = b",\n"
        file.write(b"\n]}\n")


def qupath_corner(result: Result) -> tuple[int, int]:
    """Return x and y of the level-0 pixel that is the first one in QuPath.

    QuPath shows no more of a slide than what was scanned, where OpenSlide knows its bounds (MIRAX,
    Leica, Ventana), unless it was opened with ``--no-crop`` (OpenslideImageServer.java).

    Raises
    ------
    GigavimError
        If the slide is needed to tell, and not there any more.
    """
    source = result.about["source"]
    if "bounds" in source:
        return source["bounds"][0], source["bounds"][1]
    if source["reader"] != "openslide":
        return 0, 0
    import openslide

    try:
        with openslide.OpenSlide(source["uri"]) as slide:
            bounds = [slide.properties.get(f"openslide.bounds-{name}") for name in _BOUNDS]
    except (FileNotFoundError, openslide.OpenSlideError) as error:
        raise GigavimError(
            f"{source['uri']}: where QuPath begins to show this slide stands in it, and it "
            f"cannot be opened ({error}); put it back"
        ) from error
    return (0, 0) if None in bounds else (int(bounds[0] or 0), int(bounds[1] or 0))


def _regions(result: Result, layer: Layer) -> Iterator[Described]:
    """Describe the regions of a class map."""
    import shapely

    if layer.name == NUCLEI:
        return
    found = regions(result, layer)
    if _in_degrees(layer):
        polygons = to_crs(found.polygons, layer.registration, LONGITUDE_LATITUDE)
        polygons = shapely.orient_polygons(polygons)
    else:
        polygons = to_level0(found.polygons, layer.registration)
    # QuPath's words for a slide, GeoParquet's columns for a scene.
    names = ("Area µm^2", "Share", "Mean probability")
    if not result.is_slide:
        names = ("area_m2", "share", "score_mean")
    for polygon, class_, *figures in zip(
        polygons, found.classes, found.areas, found.shares, found.probabilities, strict=True
    ):
        rings = [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]
        measured = {
            name: round(float(figure), 6)
            for name, figure in zip(names, figures, strict=True)
            if np.isfinite(figure)
        }
        yield rings, _properties("annotation", layer, int(class_), measured)


def _tiles(result: Result, layer: Layer) -> Iterator[Described]:
    """Describe a square for each patch that could be read."""
    import shapely

    table = result.patches()
    labels = None
    if layer.shape == result.grid_shape:
        labels = np.asarray(layer.levels[0][...])
    height, width = table.side_level0
    registration = layer.registration
    cell = np.array([registration.cell_x, registration.cell_y])
    corner = np.array([registration.corner_x, registration.corner_y])
    names = [f"Probability {name}" for name in table.classes]
    for part in table.parts():
        x, y = part.coords.T.astype(np.float64)
        squares = shapely.box(x, y, x + width, y + height)
        if _in_degrees(layer):
            squares = shapely.transform(squares, lambda xy: (xy - corner) / cell)
            squares = shapely.orient_polygons(to_crs(squares, registration, LONGITUDE_LATITUDE))
        rings = shapely.get_coordinates(squares).reshape(-1, 5, 2)
        for row, ring in enumerate(rings):
            class_ = 0 if labels is None else int(labels[tuple(part.index[row])])
            measured = {}
            if part.probs is not None:
                probs = part.probs[row].round(3).tolist()
                measured = dict(zip(names, probs, strict=True))
            yield [ring], _properties("tile", layer, class_, measured)


def _nuclei(result: Result) -> Iterator[Described]:
    """Describe each nucleus."""
    layer = result.layer(NUCLEI)
    values = result.store.array
    ends = result.store.values(f"objects/{NUCLEI}/ends")
    starts = np.concatenate([[0], ends[:-1]])
    for first in range(0, len(ends), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        base = int(starts[first])
        vertices = np.asarray(
            values(f"objects/{NUCLEI}/vertices")[base : int(ends[rows][-1])], np.float64
        )
        areas, probabilities = (
            np.asarray(values(f"objects/{NUCLEI}/{name}")[rows])
            for name in ("area_um2", "probability")
        )
        outlines = np.split(vertices, ends[rows][:-1] - base)
        for outline, area, probability in zip(outlines, areas, probabilities, strict=True):
            measured = {
                "Area µm^2": round(float(area), 3),
                "Probability": round(float(probability), 3),
            }
            yield [outline], _properties("detection", layer, 1, measured)


def _properties(kind: str, layer: Layer, class_: int, measured: dict[str, float]) -> dict[str, Any]:
    """Return the properties of a feature, in QuPath's words."""
    properties: dict[str, Any] = {"objectType": kind, "measurements": measured, "isLocked": True}
    if class_:
        name, colour = layer.names[class_ - 1], layer.colours[class_ - 1]
        properties["classification"] = {"name": name, "color": list(colour)}
        if _in_degrees(layer):
            # QGIS makes no columns of what is nested.
            properties |= {"class_name": name, **measured}
    return properties


def _in_degrees(layer: Layer) -> bool:
    """Whether GeoJSON's own coordinates can be given."""
    return layer.registration.crs is not None
