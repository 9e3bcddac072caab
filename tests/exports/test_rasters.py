"""GeoTIFF by GDAL, OME-TIFF by tifffile and ome-types, Zarr by rioxarray, PNG by Pillow."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image

from gigavim.errors import GigavimError
from gigavim.exports.geotiff import write_geotiff
from gigavim.exports.ometiff import write_ometiff
from gigavim.exports.png import write_png
from gigavim.exports.result import Result
from images import ORIGIN, TABLE


def test_gdal_reads_a_cog_with_crs_colours_names_and_nodata(scene: Result, tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    write_geotiff(scene, path)
    with rasterio.open(path) as raster:
        assert raster.crs.to_epsg() == 32632
        assert raster.transform == rasterio.Affine(80, 0, ORIGIN[0], 0, -80, ORIGIN[1])
        np.testing.assert_array_equal(raster.read(1), scene.store.values("labels/classify/0"))
        assert raster.nodata == 0
        assert raster.colormap(1)[2] == (0, 255, 0, 255)
        assert raster.descriptions == ("classify",)
        assert raster.tags()["MODEL"] == "landcover"
    names = ElementTree.parse(tmp_path / "s.tif.aux.xml").iterfind(".//Category")
    assert [name.text for name in names] == ["background", *TABLE.names]


def test_rio_cogeo_finds_it_valid(scene: Result, tmp_path: Path) -> None:
    rio_cogeo = pytest.importorskip("rio_cogeo")
    write_geotiff(scene, tmp_path / "s.tif")
    valid, errors, warnings = rio_cogeo.cog_validate(tmp_path / "s.tif", strict=True)
    assert valid, (errors, warnings)


def test_overviews_have_the_class_that_most_of_their_cells_have(
    scene: Result, tmp_path: Path
) -> None:
    # Three of four cells are of one class, the fourth is of another.
    coarse = np.random.default_rng(0).integers(1, 4, (600, 700), np.uint8)
    fine = coarse.repeat(2, 0).repeat(2, 1)
    fine[::2, ::2] = 1 + fine[::2, ::2] % 3
    write_geotiff(_with_map(scene, tmp_path, fine), tmp_path / "s.tif", head="large")
    with rasterio.open(tmp_path / "s.tif") as raster:
        assert raster.overviews(1)[0] == 2
    with rasterio.open(tmp_path / "s.tif", overview_level=0) as overview:
        np.testing.assert_array_equal(overview.read(1), coarse)


def test_a_border_lies_where_it_lies_on_the_ground(scene: Result, tmp_path: Path) -> None:
    write_geotiff(scene, tmp_path / "s.tif", head="clusters")
    with rasterio.open(tmp_path / "s.tif") as raster:
        west, east = raster.sample([(601_599, 5_298_500), (601_601, 5_298_500)])
        outside = next(raster.sample([(600_159, 5_298_500)]))
    assert {int(west[0]), int(east[0])} == {1, 2}
    assert outside[0] == 0


def test_a_slide_has_no_place_on_earth(slide: Result, tmp_path: Path) -> None:
    with pytest.raises(GigavimError, match="no CRS to place a GeoTIFF with; --to ome-tiff"):
        write_geotiff(slide, tmp_path / "s.tif")
    assert not any(tmp_path.iterdir())


def test_ome_types_reads_the_size_of_pixels_and_channels(slide: Result, tmp_path: Path) -> None:
    ome_types = pytest.importorskip("ome_types")
    path = tmp_path / "s.ome.tif"
    write_ometiff(slide, path)
    (image,) = ome_types.from_tiff(path).images
    # 16 px of 1 µm.
    assert (image.pixels.physical_size_x, image.pixels.physical_size_x_unit.value) == (16, "µm")
    assert (image.pixels.size_x, image.pixels.size_y) == (48, 32)
    np.testing.assert_array_equal(tifffile.imread(path), slide.store.values("labels/clusters/0"))


def test_probabilities_are_a_second_image_with_a_channel_a_class(
    scene: Result, tmp_path: Path
) -> None:
    ome_types = pytest.importorskip("ome_types")
    path = tmp_path / "s.ome.tif"
    write_ometiff(scene, path)
    classes, probabilities = ome_types.from_tiff(path).images
    assert classes.name == "classify"
    assert classes.pixels.physical_size_x_unit.value == "m"
    assert [channel.name.split(",")[0] for channel in probabilities.pixels.channels] == list(
        TABLE.names
    )
    with tifffile.TiffFile(path) as file:
        np.testing.assert_array_equal(
            file.series[1].asarray(), scene.store.values("maps/classify/0")
        )


def test_a_large_map_is_a_pyramid_of_tiles(tmp_path: Path, slide: Result) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (1100, 1300), np.uint8)
    layer = slide.layer()
    store = _with_map(slide, tmp_path, labels)
    write_ometiff(store, tmp_path / "s.ome.tif", head="large")
    with tifffile.TiffFile(tmp_path / "s.ome.tif") as file:
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [
            (1100, 1300), (550, 650), (275, 325), (138, 163)
        ]  # fmt: skip
        np.testing.assert_array_equal(levels[0].asarray(), labels)
        expected = store.layer("large").levels[1][...]
        np.testing.assert_array_equal(levels[1].asarray(), expected)
        assert levels[0].pages[0].is_tiled
        red, green, blue = layer.colours[0]
        np.testing.assert_array_equal(levels[0].pages[0].colormap[:, 1] // 257, [red, green, blue])


def _with_map(result: Result, folder: Path, labels: np.ndarray) -> Result:
    """A copy of a result with one more class map."""
    import shutil

    import zarr

    from gigavim.ngff import write_label

    copy = folder / "copy.gigavim.zarr"
    shutil.copytree(result.store.path, copy)
    layer = result.layer()
    group = zarr.open_group(copy / "labels", mode="r+")
    write_label(group, "large", labels, layer.names, layer.colours, layer.registration)
    return Result.open(copy)


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
def test_classes_stay_whole_numbers_in_xarray_and_say_what_they_mean(scene: Result) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("rioxarray")
    data = xarray.open_zarr(scene.store.path, group="labels/classify", consolidated=False)["0"]
    assert data.dtype == np.uint8
    assert data.rio.nodata == 0
    meanings = dict(zip(data.flag_values, data.flag_meanings.split(), strict=True))
    assert meanings == dict(enumerate(TABLE.names, start=1))


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
def test_rioxarray_reads_the_store_as_it_stands(scene: Result) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("rioxarray")
    for kind in ("labels", "maps"):
        data = xarray.open_zarr(scene.store.path, group=f"{kind}/classify", consolidated=False)
        assert data["0"].rio.crs.to_epsg() == 32632
        assert data["0"].rio.transform() == rasterio.Affine(80, 0, ORIGIN[0], 0, -80, ORIGIN[1])
    probs = data["0"].sel(x=601_640, y=5_298_500, method="nearest").values
    row, column = (5_300_000 - 5_298_500) // 80, 20
    index = scene.store.values("tokens/grid_index")
    token = np.flatnonzero((index == (row, column)).all(1))[0]
    np.testing.assert_allclose(probs, scene.store.values("tokens/probs")[token], atol=1 / 254)


def test_the_overlay_is_a_picture(slide: Result, tmp_path: Path) -> None:
    write_png(slide, tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as picture:
        assert min(picture.size) > 300
        assert len(picture.getcolors(1 << 24) or []) > 100
