from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from napari.layers import Shapes
from shapely import LineString, MultiPolygon, Polygon, box

from gigavim.annotations import Annotation
from gigavim.plugins.napari.annotation_layer import (
    add_annotations,
    annotations_in,
    area_of,
    draw_with,
    name_shapes,
    new_annotation_layer,
    paint,
    ring_of,
)

COLOURS = {"a": (255, 0, 0), "b": (0, 128, 255)}
HOLED = Polygon(box(10, 10, 90, 90).exterior, [box(20, 20, 40, 40).exterior])
PARTS = MultiPolygon([HOLED, box(100, 100, 120, 130), Polygon([(0, 200), (9, 200), (9, 209)])])


@pytest.fixture
def layer() -> Any:
    store = SimpleNamespace(path="slide.gigavim.zarr")
    results = SimpleNamespace(
        store=store, source="slide.svs", world=np.diag([0.5, 0.5, 1.0]), unit="µm"
    )
    return new_annotation_layer(results, "mine")  # type: ignore[arg-type]


@pytest.mark.parametrize("area", [box(0, 0, 4, 2), HOLED, PARTS])
def test_areas_with_holes_and_parts_are_one_ring(area: Any) -> None:
    ring = ring_of(area)

    assert area_of(ring).equals(area)
    # And napari fills what the area covers.
    mask = Shapes([ring], shape_type="polygon").to_masks((256, 256))[0]
    y, x = np.nonzero(mask)
    far_in = shapely.contains_xy(area.buffer(-1.5), x, y)
    assert far_in.sum() == sum(
        shapely.contains_xy(area.buffer(-1.5), *np.mgrid[:256, :256].reshape(2, -1))
    )
    assert shapely.contains_xy(area.buffer(1.5), x, y).all()


corners = st.tuples(st.integers(0, 99), st.integers(0, 99))
circles = st.lists(st.tuples(corners, st.integers(3, 30)), min_size=1, max_size=4)


@given(circles, circles)
def test_any_area_comes_back_from_its_ring(wholes: Any, holes: Any) -> None:
    def joined(parts: Any) -> Any:
        return shapely.union_all([shapely.Point(at).buffer(r, 4) for at, r in parts])

    area = joined(wholes).difference(joined(holes))
    if not area.area or not area.is_valid:
        return

    back = area_of(ring_of(area).astype(np.float32))

    assert back.is_valid
    assert back.symmetric_difference(area).area < 1e-3 * (1 + area.length)


def test_a_line_that_crosses_itself_encloses_both_its_loops() -> None:
    bow = np.array([(0, 0), (10, 10), (10, 0), (0, 10)], float)

    assert area_of(bow).area == pytest.approx(50)


def test_annotations_come_back_from_a_layer(layer: Any) -> None:
    drawn = [
        Annotation(PARTS, "a", COLOURS["a"]),
        Annotation(LineString([(1, 2), (30, 4)]), "b", COLOURS["b"], 12.0),
        Annotation(box(5, 5, 8, 9), "b", COLOURS["b"]),
    ]
    add_annotations(layer, drawn, COLOURS, cell=16)

    back = annotations_in(layer, COLOURS)

    assert [(each.name, each.colour, each.width) for each in back] == [
        (each.name, each.colour, each.width) for each in drawn
    ]
    for found, there in zip(back, drawn, strict=True):
        assert found.geometry.equals(there.geometry)
    np.testing.assert_allclose(layer.edge_color[:2, :3], [[1, 0, 0], [0, 128 / 255, 1]], atol=1e-6)


def test_shapes_of_every_kind_are_areas_or_strokes(layer: Any) -> None:
    square = np.array([[0, 0], [0, 20], [10, 20], [10, 0]], float)
    draw_with(layer, "b", COLOURS["b"], 3.0)
    for kind in ("rectangle", "ellipse", "polygon"):
        layer.add([square], shape_type=kind)
    layer.add([square[:2]], shape_type="line")
    layer.add([square], shape_type="path")

    rectangle, ellipse, polygon, line, path = annotations_in(layer, COLOURS)

    assert {each.name for each in (rectangle, ellipse, polygon, line, path)} == {"b"}
    assert rectangle.geometry.bounds == (0, 0, 20, 10)
    assert rectangle.geometry.equals(polygon.geometry)
    assert ellipse.geometry.area == pytest.approx(np.pi * 5 * 10, rel=0.01)
    assert (ellipse.geometry.centroid.x, ellipse.geometry.centroid.y) == pytest.approx((10, 5))
    assert list(line.geometry.coords) == [(0, 0), (20, 0)]
    assert (line.width, path.width, rectangle.width) == (3, 3, 0)


def test_colours_follow_the_class(layer: Any) -> None:
    draw_with(layer, "a", COLOURS["a"], 3.0)
    layer.add([np.array([[0, 0], [9, 9]])], shape_type="path", edge_color=None)
    name_shapes(layer, [0], "b", COLOURS)
    np.testing.assert_allclose(layer.edge_color[0, :3], (0, 128 / 255, 1), atol=1e-6)
    paint(layer, {"b": (0, 255, 0)})
    np.testing.assert_allclose(layer.edge_color[0, :3], (0, 1, 0), atol=1e-6)
    assert layer.features["class"].tolist() == ["b"]
