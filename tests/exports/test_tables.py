"""GeoParquet by geopandas, CSV by Python's own reader."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import shapely

from gigavim.exports.csv import write_csv
from gigavim.exports.geojson import write_geojson
from gigavim.exports.geoparquet import write_geoparquet
from gigavim.exports.result import Result
from images import TABLE


def test_geopandas_reads_the_regions_of_a_scene_with_their_crs(
    scene: Result, tmp_path: Path
) -> None:
    geopandas = pytest.importorskip("geopandas")
    write_geoparquet(scene, tmp_path / "s.parquet", head="clusters")
    frame = geopandas.read_parquet(tmp_path / "s.parquet")
    assert frame.crs.to_epsg() == 32632
    # Valid pixels are 16 to 304 by 16 to 240; columns from 160 on are meadow.
    bounds = sorted(frame.bounds.values.tolist())
    assert bounds == [
        [600_160, 5_297_600, 601_600, 5_299_840],
        [601_600, 5_297_600, 603_040, 5_299_840],
    ]
    np.testing.assert_allclose(frame.area_m2, frame.to_crs("EPSG:6933").area, rtol=1e-4)
    np.testing.assert_allclose(frame.share, 0.5)
    assert set(frame.class_name) == {"cluster 1", "cluster 2"}


@pytest.mark.parametrize("to", ["geojson", "parquet"])
def test_areas_are_those_on_the_ellipsoid(scene: Result, tmp_path: Path, to: str) -> None:
    geopandas = pytest.importorskip("geopandas")
    pyproj = pytest.importorskip("pyproj")
    write, read = {
        "geojson": (write_geojson, geopandas.read_file),
        "parquet": (write_geoparquet, geopandas.read_parquet),
    }[to]
    write(scene, tmp_path / f"s.{to}", head="clusters")
    frame = read(tmp_path / f"s.{to}").to_crs("EPSG:4326")
    earth = pyproj.Geod(ellps="WGS84")
    areas = [abs(earth.geometry_area_perimeter(shape)[0]) for shape in frame.geometry]
    assert len(areas) == 2
    np.testing.assert_allclose(frame["area_m2"], areas, rtol=1e-4)


def test_mean_probabilities_stand_beside_classes(scene: Result, tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    write_geoparquet(scene, tmp_path / "s.parquet")
    frame = geopandas.read_parquet(tmp_path / "s.parquet")
    assert set(frame.class_name) <= set(TABLE.names)
    # The likeliest of three classes has a third at least.
    assert frame.score_mean.between(1 / 3 - 1e-3, 1).all()
    assert list(np.array(TABLE.names)[frame.class_id - 1]) == list(frame.class_name)


def test_regions_of_a_slide_are_in_micrometres(slide: Result, tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    write_geoparquet(slide, tmp_path / "s.parquet", head="foreground")
    frame = geopandas.read_parquet(tmp_path / "s.parquet")
    assert frame.crs is None
    left, top, right, bottom = frame.total_bounds
    np.testing.assert_allclose([left, top, right, bottom], [192, 128, 576, 384], atol=16)
    assert frame.area_um2.sum() == pytest.approx(slide.table().readable * 16 * 16)


def test_a_table_has_a_line_for_each_readable_patch(slide: Result, tmp_path: Path) -> None:
    write_csv(slide, tmp_path / "s.tokens.csv")
    with (tmp_path / "s.tokens.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    valid = slide.store.values("tokens/valid") > 0
    assert not valid.all()
    coords = [[int(line["x"]), int(line["y"])] for line in lines]
    np.testing.assert_array_equal(coords, slide.store.values("tokens/coords")[valid])
    labels = slide.store.values("labels/clusters/0")
    for line in lines:
        assert line["class"] == f"cluster {labels[int(line['row']), int(line['column'])]}"


def test_a_table_has_probabilities_and_another_the_areas(scene: Result, tmp_path: Path) -> None:
    write_csv(scene, tmp_path / "s.tokens.csv")
    with (tmp_path / "s.tokens.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    probs = np.array([[float(line[f"prob_{name}"]) for name in TABLE.names] for line in lines])
    np.testing.assert_allclose(probs, scene.store.values("tokens/probs"), atol=1e-3)
    assert [line["class"] for line in lines] == [TABLE.names[row.argmax()] for row in probs]
    with (tmp_path / "s.tokens.areas.csv").open(newline="", encoding="utf-8") as file:
        areas = list(csv.DictReader(file))
    assert [line["class"] for line in areas] == list(TABLE.names)
    # 36 x 28 patches of 80 m.
    assert sum(float(line["area_km2"]) for line in areas) == pytest.approx(36 * 28 * 0.0064)
    assert sum(float(line["share"]) for line in areas) == pytest.approx(1, abs=1e-5)


def test_a_table_in_parts_is_the_same(
    scene: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(scene, tmp_path / "whole.csv")
    monkeypatch.setattr("gigavim.exports.result.ROWS_AT_ONCE", 100)
    write_csv(scene, tmp_path / "parts.csv")
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_squares_of_tiles_and_patches_have_their_size(tiles: Result) -> None:
    assert tiles.table().side_level0 == (64, 64)
    assert tiles.patches().side_level0 == (8, 8)
    corners = next(tiles.table().parts()).coords
    assert not (corners % 64).any()
    assert shapely.MultiPoint(corners).bounds == (0, 0, 256, 192)
