from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
import zarr
from rasterio.warp import transform

from gigavim.config import Resources, RunConfig
from gigavim.exports.geojson import qupath_corner, write_geojson
from gigavim.exports.result import Result
from gigavim.ngff import write_label
from gigavim.pipelines.run import run_image
from images import UTM, write_model


def read(path: Path) -> list[dict[str, Any]]:
    collection = json.loads(path.read_text(encoding="utf-8"))
    assert collection["type"] == "FeatureCollection"
    return collection["features"]


def test_qupath_finds_annotations_with_class_colour_and_measurements(
    slide: Result, tmp_path: Path
) -> None:
    write_geojson(slide, tmp_path / "s.geojson")
    features = read(tmp_path / "s.geojson")
    for feature in features:
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert feature["geometry"]["coordinates"][0][0] == feature["geometry"]["coordinates"][0][-1]
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        assert properties["classification"]["name"] in slide.layer().names
        assert tuple(properties["classification"]["color"]) in slide.layer().colours
    assert len({feature["id"] for feature in features}) == len(features)
    measured = [feature["properties"]["measurements"] for feature in features]
    assert sum(row["Share"] for row in measured) == pytest.approx(1, abs=1e-4)
    patches = slide.table().readable
    assert sum(row["Area µm^2"] for row in measured) == pytest.approx(patches * 16 * 16)


def test_regions_of_a_slide_lie_on_its_tissue(slide: Result, tmp_path: Path) -> None:
    write_geojson(slide, tmp_path / "s.geojson", head="foreground")
    tissue = shapely.union_all(
        [shapely.geometry.shape(f["geometry"]) for f in read(tmp_path / "s.geojson")]
    )
    ellipse = shapely.affinity.scale(shapely.Point(768, 512).buffer(1, 64), 384, 256)
    # The tile at (512, 256) could not be decoded.
    expected = ellipse - shapely.box(512, 256, 768, 512)
    assert tissue.intersection(expected).area > 0.95 * expected.area
    assert not tissue.intersects(shapely.box(520, 264, 760, 504))


def test_each_readable_patch_is_a_tile(slide: Result, tmp_path: Path) -> None:
    write_geojson(slide, tmp_path / "t.geojson", objects="tiles")
    features = read(tmp_path / "t.geojson")
    assert {feature["properties"]["objectType"] for feature in features} == {"tile"}
    boxes = {shapely.geometry.shape(feature["geometry"]).bounds for feature in features}
    coords = slide.store.values("tokens/coords")[slide.store.values("tokens/valid") > 0]
    # 16 px of 1 µm are 32 of level 0.
    assert boxes == {(x, y, x + 32, y + 32) for x, y in coords.tolist()}


def test_a_scene_is_given_in_longitude_and_latitude(scene: Result, tmp_path: Path) -> None:
    write_geojson(scene, tmp_path / "s.geojson", head="clusters")
    west, east = sorted(
        (shapely.geometry.shape(f["geometry"]) for f in read(tmp_path / "s.geojson")),
        key=lambda shape: shape.centroid.x,
    )
    border = shapely.get_coordinates(west.intersection(east))
    (xs, ys) = transform("EPSG:4326", UTM, border[:, 0], border[:, 1])
    np.testing.assert_allclose(xs, 601_600, atol=0.1)
    np.testing.assert_allclose([min(ys), max(ys)], [5_297_600, 5_299_840], atol=0.1)


def test_probabilities_of_a_tile_are_its_measurements(scene: Result, tmp_path: Path) -> None:
    write_geojson(scene, tmp_path / "t.geojson.gz", objects="tiles")
    with gzip.open(tmp_path / "t.geojson.gz") as file:
        features = json.load(file)["features"]
    probs = scene.store.values("tokens/probs")
    for feature, row in list(zip(features, probs, strict=True))[:50]:
        measured = feature["properties"]["measurements"]
        assert measured["Probability water"] == pytest.approx(float(row[0]), abs=1e-3)
        likeliest = feature["properties"]["classification"]["name"]
        assert measured[f"Probability {likeliest}"] == max(measured.values())


def test_nuclei_are_detections(slide: Result, tmp_path: Path) -> None:
    copy = tmp_path / "slide.gigavim.zarr"
    shutil.copytree(slide.store.path, copy)
    group = zarr.open_group(copy, mode="r+")
    square = np.array([[600, 600], [610, 600], [610, 610], [600, 610], [600, 600]], np.float32)
    objects = {
        "vertices": np.concatenate([square, square + 100]),
        "ends": np.array([5, 10], np.int64),
        "area_um2": np.array([25, 25], np.float32),
        "probability": np.array([0.75, 0.5], np.float32),
    }
    for name, values in objects.items():
        group.create_array(f"objects/nuclei/{name}", data=values)
    place = slide.layer().registration
    mask = np.zeros((64, 96), np.uint8)
    write_label(group["labels"], "nuclei", mask, ["nucleus"], [(213, 94, 0)], place)
    write_geojson(Result.open(copy), tmp_path / "n.geojson")
    found = [
        f for f in read(tmp_path / "n.geojson") if f["properties"]["objectType"] == "detection"
    ]
    outlines = [shapely.geometry.shape(feature["geometry"]).bounds for feature in found]
    assert outlines == [(600, 600, 610, 610), (700, 700, 710, 710)]
    assert found[0]["properties"]["classification"]["name"] == "nucleus"
    assert found[0]["properties"]["measurements"] == {"Area µm^2": 25.0, "Probability": 0.75}


SCN = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:0">
<collection name="c" uuid="urn:uuid:1" sizeX="1000000" sizeY="1200000" barcode="">
<barcode/>{images}</collection></scn>"""
SCN_IMAGE = """<image name="{name}" uuid="urn:uuid:{ifd}">
<creationDate>2020-01-01T00:00:00Z</creationDate><device model="m" version="1"/>
<pixels sizeX="{x}" sizeY="{y}"><dimension sizeX="{x}" sizeY="{y}" r="0" ifd="{ifd}"/></pixels>
<view sizeX="{w}" sizeY="{h}" offsetX="{left}" offsetY="{top}" spacingZ="0"/><scanSettings>
<objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>
<numericalAperture>0.5</numericalAperture><illuminationSource>brightfield</illuminationSource>
</illuminationSettings></scanSettings></image>"""


def write_leica(path: Path) -> Path:
    """A slide of 2000 x 2400 px of which 512 x 384 were scanned, from (640, 480) on."""
    random = np.random.default_rng(0)
    stain = np.array([200, 110, 170]) + random.normal(0, 12, (384, 512, 1))
    images = SCN_IMAGE.format(
        name="macro", ifd=1, x=100, y=120, w=1_000_000, h=1_200_000, left=0, top=0
    ) + SCN_IMAGE.format(
        name="main", ifd=0, x=512, y=384, w=256_000, h=192_000, left=320_000, top=240_000
    )
    options = {"photometric": "rgb", "compression": "jpeg", "tile": (128, 128), "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(
            stain.clip(0, 255).astype(np.uint8), description=SCN.format(images=images), **options
        )
        file.write(np.full((120, 100, 3), 240, np.uint8), **options)
    return path


def test_qupath_begins_where_the_scanned_part_begins(tmp_path: Path) -> None:
    image = write_leica(tmp_path / "slide.scn")
    model = write_model(tmp_path / "tissue.safetensors")
    store = tmp_path / "slide.gigavim.zarr"
    config = RunConfig(model=str(model), clusters=2, source_spacing=(0.5, 0.5))
    run_image(str(image), store, config, Resources(device="cpu"))
    result = Result.open(store)
    assert qupath_corner(result) == (640, 480)
    write_geojson(result, tmp_path / "s.geojson", head="foreground")
    shapes = [shapely.geometry.shape(f["geometry"]) for f in read(tmp_path / "s.geojson")]
    assert shapely.total_bounds(shapes).tolist() == [0, 0, 512, 384]


def test_other_slides_begin_at_their_corner(slide: Result) -> None:
    assert qupath_corner(slide) == (0, 0)
