from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from gigavim.errors import StoreError
from gigavim.geometry import Spacing
from gigavim.georeference import Registration
from gigavim.views.geotiff import write_class_geotiff

NAMES = ("water", "forest & meadow")
COLOURS = ((0, 114, 178), (0, 158, 115))
SCENE = Registration(
    16.0,
    16.0,
    Spacing(10.0, 10.0, "metre", "transform"),
    crs=rasterio.crs.CRS.from_epsg(32633).to_wkt(),
    transform=(10.0, 0.0, 5e5, 0.0, -10.0, 6e6),
)


@pytest.fixture
def labels() -> NDArray[np.uint8]:
    blocks = np.random.default_rng(0).integers(0, 3, (40, 30), np.uint8)
    return blocks.repeat(32, 0).repeat(32, 1)[:1200, :900]


def test_a_class_map_lies_where_its_scene_lies(tmp_path: Path, labels: NDArray[np.uint8]) -> None:
    path = tmp_path / "map.tif"
    write_class_geotiff(path, labels, SCENE, NAMES, COLOURS)
    with rasterio.open(path) as raster:
        assert raster.crs.to_epsg() == 32633
        assert raster.transform == rasterio.Affine(160, 0, 5e5, 0, -160, 6e6)
        np.testing.assert_array_equal(raster.read(1), labels)
        np.testing.assert_array_equal(raster.read_masks(1) > 0, labels > 0)


def test_a_class_map_has_the_colours_and_names_of_its_classes(
    tmp_path: Path, labels: NDArray[np.uint8]
) -> None:
    path = tmp_path / "map.tif"
    write_class_geotiff(path, labels, SCENE, NAMES, COLOURS)
    with rasterio.open(path) as raster:
        assert raster.colorinterp[0] == rasterio.enums.ColorInterp.palette
        assert [raster.colormap(1)[value][:3] for value in (1, 2)] == list(COLOURS)
    beside = ElementTree.parse(tmp_path / "map.tif.aux.xml")
    named = [category.text for category in beside.iter("Category")]
    assert named == ["background", *NAMES]


def test_a_class_map_is_tiled_compressed_and_has_overviews(
    tmp_path: Path, labels: NDArray[np.uint8]
) -> None:
    path = tmp_path / "map.tif"
    write_class_geotiff(path, labels, SCENE, NAMES, COLOURS)
    with rasterio.open(path) as raster:
        assert raster.profile["tiled"]
        assert raster.compression == rasterio.enums.Compression.deflate
        assert raster.overviews(1) == [2, 4]
    with rasterio.open(path, overview_level=0) as overview:
        half = overview.read(1)
    np.testing.assert_array_equal(half, labels[::2, ::2])


def test_overviews_hold_classes_and_not_their_mean(tmp_path: Path) -> None:
    stripes = np.resize(np.array([1, 1, 1, 3, 3, 3], np.uint8), (600, 600))
    path = tmp_path / "map.tif"
    write_class_geotiff(path, stripes, SCENE, (*NAMES, "soil"), (*COLOURS, (1, 2, 3)))
    with rasterio.open(path, overview_level=0) as overview:
        assert set(np.unique(overview.read(1))) == {1, 3}


def test_a_map_in_an_unnamed_crs_keeps_its_place(tmp_path: Path, labels: NDArray[np.uint8]) -> None:
    path = tmp_path / "map.tif"
    write_class_geotiff(path, labels, replace(SCENE, crs=None), NAMES, COLOURS)
    with rasterio.open(path) as raster:
        assert raster.crs is None
        assert raster.transform == rasterio.Affine(160, 0, 5e5, 0, -160, 6e6)


def test_a_map_that_lies_nowhere_is_refused(tmp_path: Path, labels: NDArray[np.uint8]) -> None:
    slide = Registration(16.0, 16.0, Spacing(0.5, 0.5, "µm", "test"))
    with pytest.raises(ValueError, match="transform"):
        write_class_geotiff(tmp_path / "map.tif", labels, slide, NAMES, COLOURS)


def test_a_map_that_cannot_be_written_is_one_line(
    tmp_path: Path, labels: NDArray[np.uint8]
) -> None:
    with pytest.raises(StoreError, match=r"cannot write .*map\.tif: no such file"):
        write_class_geotiff(tmp_path / "nowhere" / "map.tif", labels, SCENE, NAMES, COLOURS)
    assert not list(tmp_path.iterdir())
