"""HDF5 as the readers of CLAM, TRIDENT, TITAN and STAMP take it apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gigavim.errors import GigavimError
from gigavim.exports import hdf5
from gigavim.exports.result import Result

h5py = pytest.importorskip("h5py")


def readable(result: Result) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Features and corners as zarr itself reads them."""
    valid = result.store.values("tokens/valid") > 0
    return (
        result.store.values("tokens/features")[valid],
        result.store.values("tokens/coords")[valid],
    )


def test_trident_finds_features_and_places(slide: Result, tmp_path: Path) -> None:
    hdf5.write_trident(slide, tmp_path / "slide.h5")
    features, coords = readable(slide)
    with h5py.File(tmp_path / "slide.h5") as file:
        assert set(file) == {"features", "coords"}
        assert file["features"].dtype == np.float32
        assert file["coords"].dtype == np.int64
        np.testing.assert_array_equal(file["features"][:], features.astype(np.float32))
        np.testing.assert_array_equal(file["coords"][:], coords)
        about = dict(file["coords"].attrs)
        assert file["features"].attrs["encoder"] == "gigavim_tissue"
    # 16 px of 1 µm on a slide of 0.5 µm, which is 20x.
    assert about["patch_size"] == 16
    assert about["patch_size_level0"] == 32
    assert about["patch_size_level0"] == (
        about["patch_size"] * about["level0_magnification"] // about["target_magnification"]
    )
    assert (about["level0_magnification"], about["target_magnification"]) == (20, 10)
    assert (about["level0_width"], about["level0_height"]) == (1536, 1024)
    assert (about["overlap"], about["name"]) == (0, "slide")


def test_clam_can_append_to_what_it_reads(slide: Result, tmp_path: Path) -> None:
    hdf5.write_clam(slide, tmp_path / "slide.h5")
    features, coords = readable(slide)
    with h5py.File(tmp_path / "slide.h5") as file:
        assert file["coords"].dtype == np.int32
        assert file["features"].shape == features.shape
        np.testing.assert_array_equal(file["coords"][:], coords)
        assert file["features"].maxshape == (None, features.shape[1])
        # As Whole_Slide_Bag_FP reads them.
        assert file["coords"].attrs["patch_level"] == 0
        assert file["coords"].attrs["patch_size"] == 32


def test_stamp_finds_micrometres(slide: Result, tmp_path: Path) -> None:
    hdf5.write_stamp(slide, tmp_path / "slide.h5")
    features, coords = readable(slide)
    with h5py.File(tmp_path / "slide.h5") as file:
        assert set(file) == {"feats", "coords"}
        assert file["feats"].dtype == np.float16
        np.testing.assert_array_equal(file["feats"][:], features)
        np.testing.assert_allclose(file["coords"][:], coords * 0.5)
        about = dict(file.attrs)
    assert (about["unit"], about["feat_type"]) == ("um", "tile")
    assert about["tile_size_um"] / about["tile_size_px"] == 1.0


def test_stamp_takes_no_scene(scene: Result, tmp_path: Path) -> None:
    with pytest.raises(GigavimError, match=r"scene.gigavim.zarr: STAMP counts in µm"):
        hdf5.write_stamp(scene, tmp_path / "scene.h5")
    assert not any(tmp_path.iterdir())


def test_a_scene_has_no_magnification(scene: Result, tmp_path: Path) -> None:
    hdf5.write_trident(scene, tmp_path / "scene.h5")
    with h5py.File(tmp_path / "scene.h5") as file:
        assert file["coords"].attrs["patch_size_level0"] == 8
        assert "target_magnification" not in file["coords"].attrs


def test_where_tiles_were_read_a_row_is_a_tile(tiles: Result, tmp_path: Path) -> None:
    hdf5.write_clam(tiles, tmp_path / "tiles.h5")
    with h5py.File(tmp_path / "tiles.h5") as file:
        np.testing.assert_array_equal(
            file["features"][:], tiles.store.values("tiles/vectors").astype(np.float32)
        )
        np.testing.assert_array_equal(file["coords"][:], tiles.store.values("tiles/coords"))
        assert file["coords"].attrs["patch_size"] == 64


def test_features_in_parts_are_the_same(
    slide: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gigavim.exports.result.ROWS_AT_ONCE", 50)
    hdf5.write_clam(slide, tmp_path / "slide.h5")
    with h5py.File(tmp_path / "slide.h5") as file:
        np.testing.assert_array_equal(file["features"][:], readable(slide)[0].astype(np.float32))
