from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import zarr

from gigavim.errors import StoreError
from gigavim.exports.geojson import qupath_corner
from gigavim.exports.result import Result


def changed(result: Result, folder: Path, part: str, **about: Any) -> Result:
    """A copy of a result that says more of itself."""
    copy = folder / "copy.gigavim.zarr"
    shutil.copytree(result.store.path, copy)
    attributes = zarr.open_group(copy, mode="r+").attrs
    marks = dict(attributes["gigavim"])
    attributes["gigavim"] = {**marks, part: {**marks[part], **about}}
    return Result.open(copy)


def test_the_map_that_says_most_comes_first(scene: Result) -> None:
    assert scene.heads() == ("classify", "clusters", "qc", "foreground")
    assert scene.layer().name == "classify"


def test_a_map_lies_where_the_run_put_it(slide: Result) -> None:
    place = slide.layer().registration
    assert (place.cell_y, place.cell_x, place.corner_y, place.corner_x) == (32, 32, 0, 0)
    assert place.crs is None


def test_a_scene_has_the_transform_of_its_pixels(scene: Result) -> None:
    place = scene.layer().registration
    assert place.transform == pytest.approx((10, 0, 600_000, 0, -10, 5_300_000))


def test_the_side_of_a_tile_is_the_stores_word(tiles: Result, tmp_path: Path) -> None:
    assert tiles.table().side_px == 64
    assert changed(tiles, tmp_path, "grid", tile=16).table().side_px == 128


def test_where_a_scan_begins_is_the_stores_word(slide: Result, tmp_path: Path) -> None:
    moved = changed(slide, tmp_path, "source", bounds=[640, 480])
    assert qupath_corner(moved) == (640, 480)


def test_nothing_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is nothing"):
        Result.open(tmp_path / "none.gigavim.zarr")
