"""Annotations as shapes in a layer that people draw in.

The layer counts in level-0 pixels, (row, column) from the corner of the first: its affine brings
them to the world. A shape of napari is one ring. An area with holes, or of several parts, is drawn
as one that goes to and fro between its rings: napari leaves out an edge that is there twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import shapely
from napari.layers import Shapes
from numpy.typing import NDArray
from shapely import LineString, Polygon

from gigavim.annotations import Annotation, Colour, areas
from gigavim.plugins.napari.results import Results
from gigavim.plugins.napari.world import layer_units

KIND = "annotations"
CLASS = "class"
"""The column of the layer's features."""
OUTLINE = 0.15
"""Of areas, in cells."""
FACE = 0.3
"""Opacity of the inside of areas."""
UNKNOWN: Colour = (128, 128, 128)
"""Of a shape whose class is not listed."""


def new_annotation_layer(results: Results, name: str) -> Shapes:
    """Return an empty layer to annotate the image of a store in."""
    return Shapes(
        ndim=2,
        name=name,
        affine=results.world,
        units=layer_units(results.unit),
        axis_labels=("y", "x"),
        features={CLASS: np.array([], object)},
        metadata={
            "gigavim": {
                "kind": KIND,
                "head": None,
                "store": str(results.store.path),
                "source": results.source,
            }
        },
    )


def annotations_in(layer: Any, colours: Mapping[str, Colour]) -> list[Annotation]:
    """Return the shapes of a layer, in the order in which they were drawn."""
    found = []
    shapes = zip(layer.data, layer.shape_type, layer.edge_width, layer.features[CLASS], strict=True)
    for data, kind, width, name in shapes:
        points = np.asarray(data, float)
        if kind in ("line", "path"):
            geometry, width = LineString(points[:, ::-1]), float(width)
        else:
            geometry, width = area_of(_around(points) if kind == "ellipse" else points), 0.0
        if geometry.length:
            found.append(Annotation(geometry, str(name), colours.get(str(name)), width))
    return found


def add_annotations(
    layer: Any, annotations: Sequence[Annotation], colours: Mapping[str, Colour], cell: float
) -> None:
    """Add shapes to a layer; lines of several parts become several.

    Parameters
    ----------
    cell
        Side of a cell of the grid, in level-0 pixels, by which outlines are drawn.
    """
    rings, kinds, widths, names = [], [], [], list(layer.features[CLASS])
    for each in annotations:
        for part in shapely.get_parts(each.geometry) if each.is_stroke else [each.geometry]:
            rings.append(np.array(part.coords, float)[:, ::-1] if each.is_stroke else ring_of(part))
            kinds.append("path" if each.is_stroke else "polygon")
            widths.append(each.width or OUTLINE * cell)
            names.append(each.name)
    layer.add(rings, shape_type=kinds, edge_width=widths)
    layer.features = {CLASS: np.array(names, object)}
    paint(layer, colours)


def paint(layer: Any, colours: Mapping[str, Colour]) -> None:
    """Give each shape the colour of its class."""
    if len(layer.data):
        rows = [colours.get(str(name), UNKNOWN) for name in layer.features[CLASS]]
        edges = np.column_stack([np.array(rows) / 255, np.ones(len(rows))])
        layer.edge_color = edges
        layer.face_color = edges * (1, 1, 1, FACE)


def draw_with(layer: Any, name: str, colour: Colour, width: float) -> None:
    """Have what is drawn next be of a class; what is selected stays as it is."""
    red, green, blue = (value / 255 for value in colour)
    with layer.block_update_properties():
        layer.feature_defaults = {CLASS: name}
        layer.current_edge_color = (red, green, blue, 1)
        layer.current_face_color = (red, green, blue, FACE)
        layer.current_edge_width = width


def name_shapes(
    layer: Any, shapes: Sequence[int], name: str, colours: Mapping[str, Colour]
) -> None:
    """Give some shapes a class."""
    features = layer.features.copy()
    features.loc[list(shapes), CLASS] = name
    layer.features = features
    paint(layer, colours)


def ring_of(area: Any) -> NDArray[np.float64]:
    """Return an area as one ring, (row, column), not closed.

    It starts at a corner of the first ring, and comes back there between the others.
    """
    closed = [
        np.array(ring.coords, float)[:, ::-1]
        for part in shapely.get_parts(area)
        for ring in (part.exterior, *part.interiors)
    ]
    start = closed[0][:1]
    if len(closed) == 1:
        return closed[0][:-1]
    between = [piece for ring in closed[1:] for piece in (ring, start)]
    return np.concatenate([closed[0], *between[:-1]])


def area_of(ring: NDArray[np.floating]) -> Any:
    """Return the area that a ring encloses an odd number of times, of polygons of shapely."""
    loops = [shapely.make_valid(Polygon(loop)) for loop in _loops(ring[:, ::-1])]
    return areas(reduce(shapely.symmetric_difference, loops, Polygon()))


def _loops(ring: NDArray[np.floating]) -> list[list[tuple[float, float]]]:
    """Cut a ring wherever it comes back to a corner; edges walked to and fro are lost."""
    loops: list[list[tuple[float, float]]] = []
    walked: list[tuple[float, float]] = []
    place: dict[tuple[float, float], int] = {}
    for x, y in [*ring.tolist(), ring[0].tolist()]:
        corner = (x, y)
        if corner not in place:
            place[corner] = len(walked)
            walked.append(corner)
            continue
        loop = walked[place[corner] :]
        del walked[place[corner] + 1 :]
        for left in loop[1:]:
            del place[left]
        if len(loop) > 2:
            loops.append(loop)
    return loops


def _around(box: NDArray[np.float64], points: int = 64) -> NDArray[np.float64]:
    """Return the ellipse in a box, which may be turned, as a ring."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)[:, None]
    along, across = (box[1] - box[0]) / 2, (box[3] - box[0]) / 2
    return np.asarray(box.mean(0) + np.cos(angle) * along + np.sin(angle) * across)
