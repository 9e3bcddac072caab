from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from shapely import LineString, MultiPolygon, Polygon, box
from shapely.geometry import mapping

from gigavim.annotations import (
    NONE,
    Annotation,
    annotated_cells,
    read_annotations,
    write_annotations,
)
from gigavim.errors import GigavimError
from gigavim.geometry import Grid
from gigavim.masks import covered, read_mask
from gigavim.qupath import qupath_origin
from gigavim.sources import Source, open_source
from images import ORIGIN, tissue, write_scene, write_slide

QUPATH = """{
  "type": "FeatureCollection",
  "features": [
    {
      "type": "Feature",
      "id": "0c2be2a9-3a3b-4f7e-9d4e-4d7a0a8d5e11",
      "geometry": {
        "type": "Polygon",
        "coordinates": [
          [[16, 16], [80, 16], [80, 80], [16, 80], [16, 16]],
          [[32, 32], [32, 48], [48, 48], [48, 32], [32, 32]]
        ]
      },
      "properties": {
        "objectType": "annotation",
        "name": "first",
        "classification": {"name": "Tumor", "color": [200, 0, 0]},
        "isLocked": true,
        "measurements": {"Area µm^2": 960.0}
      }
    },
    {
      "type": "Feature",
      "id": "7f0a3c9e-55a8-4a0b-8a36-1f7f4e6f2f02",
      "geometry": {
        "type": "MultiPolygon",
        "coordinates": [
          [[[100, 100], [120, 100], [120, 120], [100, 100]]],
          [[[140, 100], [160, 100], [160, 120], [140, 100]]]
        ]
      },
      "properties": {
        "objectType": "annotation",
        "classification": {"names": ["Stroma", "Positive"], "color": [150, 200, 150]}
      }
    },
    {
      "type": "Feature",
      "id": "d2b0d4a4-0c1b-4a3e-8d6b-6d9d2f6f9a03",
      "geometry": {"type": "LineString", "coordinates": [[5.5, 200], [60.25, 210]]},
      "properties": {
        "objectType": "annotation",
        "classification": {"name": "Necrosis", "colorRGB": -13487566},
        "metadata": {"ANNOTATION_DESCRIPTION": "by hand"}
      }
    },
    {
      "type": "Feature",
      "id": "5b0d9b53-3c44-4f3b-a5d3-1d0c0d8a1c04",
      "geometry": {"type": "Point", "coordinates": [30, 30]},
      "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}}
    },
    {
      "type": "Feature",
      "id": "9c9a9b63-3c44-4f3b-a5d3-1d0c0d8a1c05",
      "geometry": {
        "type": "Polygon", "coordinates": [[[0, 0], [256, 0], [256, 256], [0, 256], [0, 0]]]
      },
      "properties": {"objectType": "annotation"}
    }
  ]
}"""
"""As QuPath 0.5 writes objects, with the colour of one as of before 0.4."""

HOLED = Polygon(box(10, 10, 90, 90).exterior, [box(20, 20, 40, 40).exterior])


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("slide")
    return open_source(write_slide(folder / "slide.tif", tissue(256, 256)))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(write_scene(tmp_path_factory.mktemp("scene") / "scene.tif"))


@pytest.fixture(scope="module")
def cropped(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A Leica slide of 800 x 600 pixels, of which those from (100, 40) on were scanned."""
    path = tmp_path_factory.mktemp("leica") / "slide.scn"
    about = """<?xml version="1.0"?>
    <scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:1">
      <collection name="slide" uuid="urn:uuid:2" sizeX="400000" sizeY="300000">
        <image name="scan" uuid="urn:uuid:3">
          <device model="scanner" version="1"/>
          <pixels sizeX="512" sizeY="256">
            <dimension sizeX="512" sizeY="256" r="0" ifd="0"/>
          </pixels>
          <view sizeX="256000" sizeY="128000" offsetX="50000" offsetY="20000"/>
          <scanSettings>
            <objectiveSettings><objective>20</objective></objectiveSettings>
            <illuminationSettings>
              <illuminationSource>brightfield</illuminationSource>
            </illuminationSettings>
          </scanSettings>
        </image>
      </collection>
    </scn>"""
    tifffile.imwrite(
        path, tissue(256, 512), bigtiff=True, photometric="rgb", compression="jpeg",
        tile=(256, 256), description=about, metadata=None,
    )  # fmt: skip
    return open_source(path)


coordinates = st.floats(1, 255, allow_subnormal=False)
points = st.tuples(coordinates, coordinates)
areas = st.one_of(
    st.lists(points, min_size=3, max_size=8).map(lambda ring: Polygon(ring).convex_hull),
    st.lists(points, min_size=3, max_size=12).map(lambda ring: Polygon(ring).buffer(0)),
    st.lists(points, min_size=1, max_size=4).map(
        # Holes, and more than one part.
        lambda centres: shapely.MultiPoint(centres).buffer(30).difference(HOLED)
    ),
)
strokes = st.lists(points, min_size=2, max_size=8).map(LineString)
annotations_drawn = st.lists(
    st.builds(
        Annotation,
        areas.filter(lambda area: area.area > 1e-3) | strokes.filter(lambda line: line.length > 1),
        st.text(min_size=1, max_size=9),
        st.tuples(*[st.integers(0, 255)] * 3),
    )
    .map(lambda drawn: Annotation(drawn.geometry, drawn.name, drawn.colour, drawn.is_stroke * 7.5))
    # What lies on no image is another test.
    .filter(lambda drawn: drawn.geometry.intersects(box(0, 0, 256, 256))),
    min_size=1,
    max_size=4,
)


@given(annotations_drawn)
def test_annotations_of_a_slide_come_back_as_they_were(
    slide: Source, tmp_path_factory: pytest.TempPathFactory, drawn: list[Annotation]
) -> None:
    path = tmp_path_factory.getbasetemp() / "slide.geojson"
    write_annotations(path, drawn, slide)

    read, left_out = read_annotations(path, slide)

    assert read == drawn
    assert not left_out


@given(annotations_drawn)
def test_annotations_of_a_scene_come_back_where_they_were(
    scene: Source, tmp_path_factory: pytest.TempPathFactory, drawn: list[Annotation]
) -> None:
    path = tmp_path_factory.getbasetemp() / "scene.geojson"
    write_annotations(path, drawn, scene)

    read, _ = read_annotations(path, scene)

    assert [(each.name, each.colour, each.width) for each in read] == [
        (each.name, each.colour, each.width) for each in drawn
    ]
    for back, there in zip(read, drawn, strict=True):
        # Millions of metres leave nanometres.
        assert back.geometry.equals_exact(there.geometry, 1e-6)


def test_a_file_of_qupath_is_read_with_holes_parts_lines_and_colours(
    slide: Source, tmp_path: Path
) -> None:
    path = tmp_path / "qupath.geojson"
    path.write_text(QUPATH, encoding="utf-8")

    (tumour, stroma, necrosis), left_out = read_annotations(path, slide)

    assert (tumour.name, tumour.colour) == ("Tumor", (200, 0, 0))
    assert tumour.geometry.area == 64**2 - 16**2
    assert (stroma.name, stroma.colour) == ("Stroma: Positive", (150, 200, 150))
    assert isinstance(stroma.geometry, MultiPolygon)
    assert (necrosis.name, necrosis.colour) == ("Necrosis", (50, 50, 50))
    assert list(necrosis.geometry.coords) == [(5.5, 200), (60.25, 210)]
    assert left_out == [
        f"{path}: 1 of 5 shapes are neither polygons nor lines and are left out",
        f"{path}: 1 of 4 shapes have no class and are left out",
    ]


def test_what_is_written_has_all_that_qupath_asks_for(slide: Source, tmp_path: Path) -> None:
    path = tmp_path / "ours.geojson"
    drawn = [Annotation(HOLED, "Tumor", (200, 0, 0)), Annotation(box(1, 2, 3, 4), "bare")]
    write_annotations(path, drawn, slide)

    content = json.loads(path.read_text())

    assert content["type"] == "FeatureCollection"
    assert "crs" not in content
    first, bare = content["features"]
    assert first["geometry"]["type"] == "Polygon"
    assert len(first["geometry"]["coordinates"]) == 2
    assert first["properties"] == {
        "objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]},
    }  # fmt: skip
    # Its reader refuses a class without a colour.
    assert len(bare["properties"]["classification"]["color"]) == 3
    assert first["id"] != bare["id"]


def test_qupath_counts_from_the_bounds_of_a_cropped_slide(cropped: Source, tmp_path: Path) -> None:
    assert qupath_origin(cropped) == (100, 40)
    path = tmp_path / "cropped.geojson"
    write_annotations(path, [Annotation(box(110, 60, 150, 90), "Tumor")], cropped)

    (feature,) = json.loads(path.read_text())["features"]
    assert shapely.geometry.shape(feature["geometry"]).bounds == (10, 20, 50, 50)
    (read,), _ = read_annotations(path, cropped)
    assert read.geometry.bounds == (110, 60, 150, 90)


def test_a_scene_has_its_crs_in_the_file(scene: Source, tmp_path: Path) -> None:
    path = tmp_path / "scene.geojson"
    write_annotations(path, [Annotation(box(0, 0, 32, 16), "water")], scene)

    content = json.loads(path.read_text())
    assert content["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32632"
    x, y = ORIGIN
    (feature,) = content["features"]
    bounds = shapely.geometry.shape(feature["geometry"]).bounds
    assert bounds == (x, y - 160, x + 320, y)


def test_outlines_that_cross_themselves_cover_what_they_did(slide: Source, tmp_path: Path) -> None:
    path = tmp_path / "bow.geojson"
    bow = Polygon([(10, 10), (30, 30), (30, 10), (10, 30)])
    write_annotations(path, [Annotation(bow, "bow")], slide)

    (read,), _ = read_annotations(path, slide)

    assert read.geometry.area == 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "not GeoJSON features"),
        ('{"type": "Polygon", "coordinates": []}', "a Polygon has no class"),
        ('{"type": "FeatureCollection", "features": []}', "none of its 0 shapes"),
    ],
)
def test_a_file_without_annotations_is_one_clear_error(
    slide: Source, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "bad.geojson"
    path.write_text(text)

    with pytest.raises(GigavimError, match=message) as error:
        read_annotations(path, slide)
    assert "\n" not in str(error.value)


def test_areas_hold_centres_and_strokes_touch_cells() -> None:
    grid = Grid.over(64, 96, patch=16)
    area = Annotation(box(0, 0, 30, 20), "area")
    stroke = Annotation(LineString([(40, 8), (90, 8)]), "thin")
    thick = Annotation(LineString([(40, 56), (60, 56)]), "thick", width=20)

    layout = annotated_cells([area, stroke, thick], grid)

    expected = np.full((4, 6), NONE)
    expected[0, :2] = 0
    expected[0, 2:6] = 1
    # A round pen, 10 pixels to every side.
    expected[2, 2:5] = expected[3, 1:5] = 2
    np.testing.assert_array_equal(layout, expected)


def test_the_last_of_several_annotations_counts_and_holes_are_open() -> None:
    grid = Grid.over(96, 96, patch=16)
    around = Annotation(Polygon(box(0, 0, 96, 96).exterior, [box(32, 32, 64, 64).exterior]), "a")
    across: dict[str, Any] = {"geometry": LineString([(0, 8), (96, 8)]), "name": "b"}

    layout = annotated_cells([around, Annotation(**across)], grid)

    assert (layout[0] == 1).all()
    assert (layout[2:4, 2:4] == NONE).all()
    assert (layout[1:] == 0).sum() == 30 - 4


@given(strokes.filter(lambda line: line.length > 1), st.just(0.0) | st.floats(0.5, 40))
def test_a_stroke_lies_on_just_the_cells_that_it_crosses(line: LineString, width: float) -> None:
    grid = Grid.over(256, 256, patch=32, stride=16)  # cells that begin beside the image's corner

    layout = annotated_cells([Annotation(line, "stroke", width=width)], grid)

    pen = line.buffer(width / 2) if width else line
    for row, column in np.ndindex(*grid.shape):
        x, y = grid.corner_x + column * grid.cell_x, grid.corner_y + row * grid.cell_y
        cell = box(x, y, x + grid.cell_x, y + grid.cell_y)
        # By a hair more or less is neither right nor wrong.
        if pen.intersects(cell.buffer(-1e-6)):
            assert layout[row, column] == 0
        if not pen.intersects(cell.buffer(1e-6)):
            assert layout[row, column] == NONE


def test_what_is_drawn_on_a_cropped_slide_masks_it_where_it_was_drawn(
    cropped: Source, tmp_path: Path
) -> None:
    # In QuPath the scan begins at (0, 0), which is (100, 40) of level 0.
    drawn = tmp_path / "mask.geojson"
    drawn.write_text(json.dumps(mapping(box(0, 0, 60, 40))))
    grid = Grid.over(600, 800, patch=20, ratio_y=1, ratio_x=1)
    found = covered(read_mask(str(drawn), cropped, grid), grid)
    assert np.argwhere(found).tolist() == [[r, c] for r in (2, 3) for c in (5, 6, 7)]
