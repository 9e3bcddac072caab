"""Shapes that people drew on an image, each of a class, to and from GeoJSON.

In memory a shape lies in level-0 pixels, (0, 0) being the outer corner of the first pixel. In a
file it is where other programs look for it: on a slide where QuPath does, on a scene in its CRS.

QuPath, unless told otherwise, shows a slide cropped to the bounds that OpenSlide knows of it
(``OpenslideImageServer``), so its pixels count from there and not from the corner of level 0. Its
format is that of ``PathObjectTypeAdapters`` and ``GsonTools``, github.com/qupath/qupath.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.warp import transform_geom
from shapely import GEOSException, MultiPolygon, box, get_parts, make_valid
from shapely.affinity import affine_transform
from shapely.geometry import mapping, shape

from gigavim.errors import GigavimError
from gigavim.geometry import Grid
from gigavim.qupath import qupath_origin
from gigavim.sources import Source
from gigavim.store.disk import write_file, writing

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

NONE = -1
"""In place of an annotation, or of a class, where there is none."""
LONGITUDE_LATITUDE = "OGC:CRS84"
"""What GeoJSON is in by RFC 7946."""
WITHOUT_COLOUR: Colour = (128, 128, 128)
"""What classes without a colour get in files: QuPath refuses a class that has none."""
WIDTH = "stroke width in pixels"
"""Name of the metadata of an object in which QuPath keeps what it has no place for."""
LINES = ("LineString", "MultiLineString")
SHAPES = ("Polygon", "MultiPolygon", *LINES)


@dataclass(frozen=True)
class Annotation:
    """A shape on an image, and its class."""

    geometry: Any
    """Of shapely: polygons, with holes perhaps, or lines; x and y in level-0 pixels."""
    name: str
    """Of the class."""
    colour: Colour | None = None
    """Of the class, where one is known."""
    width: float = 0.0
    """Of the pen that drew lines, in level-0 pixels."""

    @property
    def is_stroke(self) -> bool:
        """Whether it is lines, and not an area."""
        return self.geometry.geom_type in LINES


def annotated_cells(annotations: Sequence[Annotation], grid: Grid) -> NDArray[np.int32]:
    """Tell which annotation lies on each cell of a grid.

    An area lies on the cells whose centres are inside of it, a stroke on those that it touches.

    Returns
    -------
    layout
        Number of the annotation, the last one where several are, `NONE` where none is; shape (rows,
        columns).
    """
    layout = np.full(grid.shape, NONE, np.int32)
    cells = Affine(grid.cell_x, 0, grid.corner_x, 0, grid.cell_y, grid.corner_y)
    for is_stroke, some in groupby(enumerate(annotations), lambda each: each[1].is_stroke):
        # GDAL burns cells whose centre is inside, or all that are touched.
        burnt = [
            (each.geometry.buffer(each.width / 2) if each.width and is_stroke else each.geometry, n)
            for n, each in some
        ]
        rasterize(burnt, out=layout, transform=cells, all_touched=is_stroke)
    return layout


def write_annotations(path: Path, annotations: Sequence[Annotation], source: Source) -> None:
    """Write annotations as GeoJSON.

    Of a slide in the pixels of QuPath, which opens the file; of a scene in its CRS, which the file
    names, as QGIS reads it.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """
    x, y = qupath_origin(source)
    affine = Affine(1, 0, -x, 0, 1, -y)
    collection: dict[str, Any] = {"type": "FeatureCollection"}
    if source.crs is not None and source.transform is not None:
        affine = Affine(*source.transform)
        collection["crs"] = {"type": "name", "properties": {"name": _crs_name(source.crs)}}
    collection["features"] = [_feature(each, affine) for each in annotations]
    with writing(path):
        write_file(path, json.dumps(collection, ensure_ascii=False).encode())


def read_annotations(path: Path, source: Source) -> tuple[list[Annotation], list[str]]:
    """Read polygons and lines from GeoJSON, as QuPath and `write_annotations` write them.

    Parameters
    ----------
    path
        Features whose properties have a ``classification`` with a ``name``, or a ``class``. On a
        slide they are in the pixels of QuPath. On a scene they are in the CRS that the file names;
        else in that of the scene, in longitude and latitude, or in level-0 pixels: in which most of
        them lie on the image.

    Returns
    -------
    annotations
        Those with a class that lie on the image, in the order of the file.
    left_out
        What was not taken, and why, a line each.

    Raises
    ------
    GigavimError
        If the file cannot be read, or no shape with a class lies on the image.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        features = list(_features(content))
        drawn = [each for each in features if each["geometry"]["type"] in SHAPES]
        drawn = [each for each in drawn if shape(each["geometry"]).length > 0]
        read = [(each["geometry"], *_class_of(each["properties"] or {})) for each in drawn]
        named = [each for each in read if each[1]]
        named_crs = isinstance(content, dict) and "crs" in content
        crs = content["crs"]["properties"]["name"] if named_crs else None
        geometries = [
            _valid(each) for each in _on_level_0([geometry for geometry, *_ in named], crs, source)
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, GEOSException) as error:
        raise GigavimError(
            f"{path}: not GeoJSON features ({error}); export annotations as a FeatureCollection"
        ) from error
    outline = _outline(source)
    annotations = [
        Annotation(geometry, name, colour, width)
        for geometry, (_, name, colour, width) in zip(geometries, named, strict=True)
        if geometry.intersects(outline)
    ]
    if not annotations:
        finest = source.levels[0]
        raise GigavimError(
            f"{path}: none of its {len(named)} shapes with a class lies on {source.path} "
            f"({finest.width} x {finest.height} pixels); draw them in pixels of level 0 or in a CRS"
        )
    counts = [
        (len(features) - len(drawn), len(features), "are neither polygons nor lines"),
        (len(drawn) - len(named), len(drawn), "have no class"),
        (len(named) - len(annotations), len(named), f"lie outside {source.path}"),
    ]
    left_out = [
        f"{path}: {missing} of {whole} shapes {why} and are left out"
        for missing, whole, why in counts
        if missing
    ]
    return annotations, left_out


def areas(geometry: Any) -> Any:
    """Return the polygons of a geometry of any kind, together."""
    parts = [part for part in get_parts(get_parts(geometry)) if part.geom_type == "Polygon"]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def _feature(annotation: Annotation, affine: Affine) -> dict[str, Any]:
    """Return an annotation as QuPath's objects are written, moved to where they lie."""
    return {
        "type": "Feature",
        "id": str(uuid.uuid4()),
        "geometry": mapping(_moved(annotation.geometry, affine)),
        "properties": {
            "objectType": "annotation",
            "classification": {
                "name": annotation.name,
                "color": list(annotation.colour or WITHOUT_COLOUR),
            },
            **({"metadata": {WIDTH: repr(annotation.width)}} if annotation.width else {}),
        },
    }


def _features(content: Any) -> Iterator[dict[str, Any]]:
    """Walk over features, in a collection, a bare list or alone; those without a shape are none."""
    if isinstance(content, list):
        for part in content:
            yield from _features(part)
    elif content["type"] == "FeatureCollection":
        yield from _features(content["features"])
    elif content["type"] != "Feature":
        raise ValueError(f"a {content['type']} has no class")
    elif content["geometry"] is not None:
        yield content


def _class_of(properties: Mapping[str, Any]) -> tuple[str, Colour | None, float]:
    """Return name and colour of a class, empty and None without, and the width of a pen."""
    width = float((properties.get("metadata") or {}).get(WIDTH, 0))
    given = properties.get("classification") or properties.get("class") or ""
    if not isinstance(given, Mapping):
        return str(given), None, width
    colour = given.get("color")
    if colour is None and "colorRGB" in given:  # QuPath before 0.4: one signed integer
        colour = [given["colorRGB"] >> shift & 255 for shift in (16, 8, 0)]
    name = given.get("name") or ": ".join(given.get("names") or ())
    if colour is None:
        return str(name), None, width
    red, green, blue = bytes(colour[:3])
    return str(name), (red, green, blue), width


def _on_level_0(geometries: list[Any], crs: str | None, source: Source) -> list[Any]:
    """Return the geometries of a file as shapes in level-0 pixels."""
    plain = [shape(each) for each in geometries]
    if source.crs is None or source.transform is None:
        x, y = qupath_origin(source)
        return [_moved(each, Affine(1, 0, x, 0, 1, y)) for each in plain]
    to_pixels = ~Affine(*source.transform)

    def brought(origin: str) -> list[Any]:
        moved = (transform_geom(origin, source.crs, each) for each in geometries)
        return [_moved(shape(each), to_pixels) for each in moved]

    if crs is not None:
        return brought(crs)
    image = _outline(source)
    readings = [brought(source.crs)]
    if all(_is_on_earth(each) for each in plain):
        readings.append(brought(LONGITUDE_LATITUDE))
    # Last, since degrees are small numbers that lie on an image as pixels too.
    readings.append(plain)
    return max(readings, key=lambda each: sum(one.intersects(image) for one in each))


def _valid(geometry: Any) -> Any:
    """Return a geometry whose outline does not cross itself, and which covers the same."""
    return geometry if geometry.is_valid else areas(make_valid(geometry))


def _moved(geometry: Any, affine: Affine) -> Any:
    a, b, c, d, e, f = affine[:6]
    return affine_transform(geometry, [a, b, d, e, c, f])


def _is_on_earth(geometry: Any) -> bool:
    west, south, east, north = geometry.bounds
    return bool(west >= -180 and east <= 180 and south >= -90 and north <= 90)


def _outline(source: Source) -> Any:
    finest = source.levels[0]
    return box(0, 0, finest.width, finest.height)


def _crs_name(wkt: str) -> str:
    """Return the name of a CRS as GeoJSON of 2008 has it; its WKT where it has none."""
    authority = CRS.from_wkt(wkt).to_authority()
    return f"urn:ogc:def:crs:{authority[0]}::{authority[1]}" if authority else wkt
