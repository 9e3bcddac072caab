"""AnnData and SpatialData by their own readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from gigavim.exports.anndata import write_anndata
from gigavim.exports.result import Result
from gigavim.exports.spatialdata import write_spatialdata
from images import TABLE

anndata = pytest.importorskip("anndata")


def test_anndata_reads_features_classes_and_centres(scene: Result, tmp_path: Path) -> None:
    write_anndata(scene, tmp_path / "s.h5ad")
    data = anndata.read_h5ad(tmp_path / "s.h5ad")
    np.testing.assert_array_equal(data.X, scene.store.values("tokens/features").astype(np.float32))
    np.testing.assert_array_equal(data.obs[["x", "y"]], scene.store.values("tokens/coords"))
    index = scene.store.values("tokens/grid_index")
    np.testing.assert_array_equal(data.obs[["array_row", "array_col"]], index)
    np.testing.assert_array_equal(data.obsm["spatial"], scene.store.values("tokens/coords") + 4)
    np.testing.assert_array_equal(data.obsm["probs"], scene.store.values("tokens/probs"))
    labels = scene.store.values("labels/classify/0")[index[:, 0], index[:, 1]]
    assert list(data.obs["classify"]) == [TABLE.names[label - 1] for label in labels]
    assert list(data.obs["classify"].cat.categories) == list(TABLE.names)
    assert list(data.uns["classify_colors"]) == ["#0000ff", "#00ff00", "#636363"]
    assert data.uns["gigavim"]["model"] == "landcover"


def test_patches_without_pixels_are_no_observations(slide: Result, tmp_path: Path) -> None:
    write_anndata(slide, tmp_path / "s.h5ad")
    data = anndata.read_h5ad(tmp_path / "s.h5ad")
    assert data.n_obs == (slide.store.values("tokens/valid") > 0).sum()
    assert data.obs_names.is_unique
    assert data.obs["clusters"].notna().all()
    inside = (data.obs.x >= 512) & (data.obs.x < 768) & (data.obs.y >= 256) & (data.obs.y < 512)
    assert not inside.any()


def test_where_tiles_were_read_an_observation_is_a_tile(tiles: Result, tmp_path: Path) -> None:
    write_anndata(tiles, tmp_path / "t.h5ad")
    data = anndata.read_h5ad(tmp_path / "t.h5ad")
    np.testing.assert_array_equal(data.obs[["x", "y"]], tiles.store.values("tiles/coords"))
    np.testing.assert_array_equal(data.obsm["spatial"], tiles.store.values("tiles/coords") + 32)


def test_a_spatialdata_folder_has_what_lazyslide_looks_for(slide: Result, tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    folder = tmp_path / "s.zarr"
    write_spatialdata(slide, folder)
    root = zarr.open_group(folder, mode="r")
    assert root.attrs["spatialdata_attrs"]["version"] == "0.2"
    spec = root.attrs["tile_spec"]["tiles"]
    assert (spec["height"], spec["mpp"], spec["base_downsample"]) == (16, 1.0, 2.0)
    squares = geopandas.read_parquet(folder / "shapes/tiles/shapes.parquet")
    table = anndata.io.read_elem(root["tables/tissue_tiles"])
    assert root["tables/tissue_tiles"].attrs["region"] == "tiles"
    assert list(table.obs.tile_id) == list(squares.tile_id) == list(squares.index)
    assert set(table.obs.library_id) == {"tiles"}
    np.testing.assert_array_equal(squares.bounds[["minx", "miny"]], table.obs[["x", "y"]])
    np.testing.assert_array_equal(squares.area, 32 * 32)
    valid = slide.store.values("tokens/valid") > 0
    np.testing.assert_array_equal(table.X, slide.store.values("tokens/features")[valid])
    tissues = geopandas.read_parquet(folder / "shapes/tissues/shapes.parquet")
    centres = squares.set_geometry(squares.centroid)
    joined = geopandas.sjoin(centres, tissues, how="left", rsuffix="own")
    assert (joined.tissue_id_left == joined.tissue_id_own).mean() > 0.95


def test_spatialdata_reads_it_in_its_own_words(slide: Result, tmp_path: Path) -> None:
    spatialdata = pytest.importorskip("spatialdata", reason="it replaces the Dask of runs")
    write_spatialdata(slide, tmp_path / "s.zarr")
    data = spatialdata.read_zarr(tmp_path / "s.zarr")
    assert set(data.coordinate_systems) == {"global", "micrometers"}
    assert spatialdata.get_extent(data.labels["clusters_map"]) == {"y": (0, 1024), "x": (0, 1536)}
    elements, table = spatialdata.join_spatialelement_table(
        sdata=data, spatial_element_names="tiles", table_name="tissue_tiles", how="inner"
    )
    assert len(elements["tiles"]) == table.n_obs == slide.table().readable
