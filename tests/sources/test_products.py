"""Satellite products: many files, one image."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from product_files import (
    LEVEL_2A,
    NORTH,
    SIDE_M,
    WEST,
    ramp,
    write_item,
    write_landsat,
    write_raster,
    write_safe,
)
from rasterio import Affine
from rasterio.enums import Resampling

from gigavim.errors import BandError, SourceError
from gigavim.foreground import foreground
from gigavim.geometry import Grid, Window
from gigavim.quality import examine
from gigavim.sources import Pixels, Source, open_source, reopen
from gigavim.sources.recognise import is_product

INNER = np.s_[12:-12, 12:-12]
"""Pixels whose coarse neighbours all exist: at the rim there is nothing to interpolate with."""


def read_all(source: Source, level: int = 0) -> Pixels:
    size = source.levels[level]
    return source.read_level(level, Window(0, 0, size.height, size.width))


def ramp_on(metres: float, size: int) -> NDArray[np.float64]:
    """The surface at the centres of pixels of a size."""
    centres = (np.arange(size) + 0.5) * metres
    return np.asarray(ramp(centres[None, :], centres[:, None]))


@pytest.fixture(scope="module")
def safe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product whose west is clear, whose east is cloud, with a strip of shadow between."""
    return write_safe(
        tmp_path_factory.mktemp("safe"),
        scl=lambda x, y: np.where(x < 2400, 4, np.where(x < 2640, 3, 9)) + 0 * y,
    )


def test_bands_of_10_20_and_60_m_are_reflectances_on_one_grid(safe: Path) -> None:
    source = open_source(safe)
    assert [band.name for band in source.bands] == LEVEL_2A
    assert (source.kind, source.dtype, source.levels[0].width) == ("scene", np.float32, 480)
    assert source.transform == (10, 0, WEST, 0, -10, NORTH)
    assert source.metadata["processing baseline"] == "04.00"
    pixels = read_all(source)
    assert pixels.valid.all()
    expected = (ramp_on(10, 480) - 1000) / 10_000
    for number in range(len(LEVEL_2A)):
        np.testing.assert_allclose(pixels.values[..., number][INNER], expected[INNER], atol=1e-6)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    metres=st.permutations([10.0, 20.0, 60.0]),
    slope=st.tuples(st.floats(-9, 9), st.floats(5, 9)),
)
def test_bands_are_aligned_to_a_thousandth_of_a_pixel(
    tmp_path: Path, metres: list[float], slope: tuple[float, float]
) -> None:
    folder = tmp_path / "bands"
    for number, side in enumerate(metres, 1):
        write_raster(
            folder / f"B0{number}.tif",
            lambda x, y: slope[0] * x + slope[1] * y,
            side,
            dtype="float64",
        )
    pixels = read_all(open_source(folder))
    x = (np.arange(480) + 0.5) * 10
    expected = slope[0] * x[None, :] + slope[1] * x[:, None]
    steepest = 10 * np.hypot(*slope)  # per pixel of the finest grid
    for number in range(3):
        gap = np.abs(pixels.values[..., number] - expected)[INNER].max()
        assert gap / steepest < 1e-3


def test_a_window_of_a_joined_scene_does_not_depend_on_how_it_is_cut(safe: Path) -> None:
    source = open_source(safe, bands=["B04", "B05", "B01"])
    whole = read_all(source).values
    for window in (Window(0, 0, 480, 480), Window(101, 37, 150, 333), Window(479, 479, 1, 1)):
        part = source.read_level(0, window).values
        there = np.s_[window.y : window.y + window.height, window.x : window.x + window.width]
        assert np.array_equal(part, whole[there])


@pytest.mark.parametrize("crs", [None, "EPSG:3035"])
def test_noise_is_the_same_in_every_window(tmp_path: Path, crs: str | None) -> None:
    random = np.random.default_rng(0)
    for name, metres in (("B02", 10), ("B05", 20), ("B06", 25), ("B09", 60)):
        write_raster(
            tmp_path / f"{name}.tif",
            lambda x, y: random.integers(0, 9, (y.shape[0], x.shape[1])),
            metres,
            side_m=6000,
            nodata=0,
        )
    source = open_source(tmp_path, crs=crs)
    whole = read_all(source)
    assert 0.3 < whole.valid.mean() < 0.9
    for window in (Window(3, 129, 500, 11), Window(250, 255, 3, 300), Window(127, 127, 258, 258)):
        part = open_source(tmp_path, crs=crs).read_level(0, window)
        there = np.s_[window.y : window.y + window.height, window.x : window.x + window.width]
        assert np.array_equal(part.values, whole.values[there])
        assert np.array_equal(part.valid, whole.valid[there])


def test_the_levels_of_a_scene_lie_over_each_other(safe: Path) -> None:
    source = open_source(safe, bands=["B02", "B11", "B09"])
    assert [level.downsample_x for level in source.levels] == [1, 2, 4]
    for level, metres in ((1, 20), (2, 40)):
        values = read_all(source, level).values
        expected = (ramp_on(metres, 480 * 10 // metres) - 1000) / 10_000
        for number in range(3):
            np.testing.assert_allclose(
                values[..., number][6:-6, 6:-6], expected[6:-6, 6:-6], atol=2e-4
            )


def test_the_grid_is_that_of_the_finest_band_that_is_asked_for(safe: Path) -> None:
    assert open_source(safe, bands=["B09"]).levels[0].width == 80
    assert open_source(safe, bands=["B11", "B09"]).levels[0].width == 240
    assert open_source(safe, bands=["B09", "red"]).levels[0].width == 480


def test_bands_are_found_by_name_common_name_wavelength_and_index(safe: Path) -> None:
    source = open_source(safe, bands=["nir", "664.6nm", "b5", "1", "SCL"])
    assert [band.name for band in source.bands] == ["B08", "B04", "B05", "B01", "SCL"]
    with pytest.raises(BandError, match=r"has no band 'B10'; it has 1 B01 \(443nm\)"):
        open_source(safe, bands=["B10"])


def test_level_1c_has_offsets_of_its_own_and_old_baselines_none(tmp_path: Path) -> None:
    expected = ramp_on(10, 480)[INNER]
    for name, level, baseline, offset, added in (
        ("a", "1C", "04.00", -1000, -1000),
        ("b", "1C", "02.09", None, 0),
        ("c", "2A", "05.09", None, -1000),
    ):
        path = write_safe(tmp_path / name, level=level, baseline=baseline, offset=offset)
        source = open_source(path, bands=["B02"])
        np.testing.assert_allclose(
            read_all(source).values[..., 0][INNER], (expected + added) / 10_000, atol=1e-6
        )
    (first,) = (tmp_path / "a").iterdir()
    assert len(open_source(first).bands) == 13


def test_what_a_detector_did_not_see_is_not_valid_in_any_resolution(tmp_path: Path) -> None:
    path = write_safe(
        tmp_path, {name: lambda x, y: np.where(x < 1200, 0, ramp(x, y)) for name in LEVEL_2A}
    )
    pixels = read_all(open_source(path, bands=["B02", "B05", "B09"]))
    assert not pixels.valid[:, :120].any()
    assert pixels.valid[:, 120:].all()
    expected = (ramp_on(10, 480) - 1000) / 10_000
    np.testing.assert_allclose(
        pixels.values[..., 1][12:-12, 132:-12], expected[12:-12, 132:-12], atol=1e-6
    )


def test_clouds_and_shadows_are_counted_and_can_be_left_out(safe: Path) -> None:
    source = open_source(safe, bands=["B04", "B11"])
    grid = Grid.over(480, 480, patch=16)
    quality = examine(source, grid, np.ones(grid.shape, np.bool_))
    assert quality.shares["cloud"] == pytest.approx((480 - 264) / 480, abs=0.04)
    assert quality.shares["cloud shadow"] == pytest.approx(24 / 480, abs=0.04)
    without = open_source(safe, bands=["B04", "B11"], mask_clouds=True)
    words = examine(without, grid, np.ones(grid.shape, np.bool_)).found
    assert "clouds and their shadows are 50 % of the image, and left out" in words
    masked = read_all(without)
    assert masked.valid[:, :240].all()
    assert not masked.valid[:, 240:].any()


def test_a_scene_that_is_all_cloud_has_no_foreground(tmp_path: Path) -> None:
    path = write_safe(tmp_path, scl=lambda x, y: 9 + 0 * x, side_m=960)
    source = open_source(path, bands=["B04"], mask_clouds=True)
    grid = Grid.over(96, 96, patch=16)
    assert not foreground(source, grid).any()


def test_clouds_cannot_be_left_out_where_no_band_says_where_they_are(tmp_path: Path) -> None:
    path = write_safe(tmp_path, level="1C", side_m=960)
    with pytest.raises(SourceError, match=r"no band that says where clouds are .*--mask-clouds"):
        open_source(path, mask_clouds=True)


def test_a_finer_copy_that_is_missing_is_read_coarser_and_a_missing_band_is_named(
    tmp_path: Path,
) -> None:
    path = write_safe(tmp_path, leave_out=("B03",), side_m=960)
    for file in path.rglob("*B02_10m.jp2"):
        file.unlink()
    source = open_source(path, bands=["B02"])
    assert source.levels[0].width == 48
    assert source.metadata["missing bands"] == "B03"
    with pytest.raises(BandError, match="has no band 'green'"):
        open_source(path, bands=["green"])


def test_a_product_is_read_from_its_zip_and_by_its_metadata_file(
    tmp_path: Path, safe: Path
) -> None:
    expected = read_all(open_source(safe, bands=["red", "B11"])).values
    archive = shutil.make_archive(str(tmp_path / "product"), "zip", safe.parent, safe.name)
    for path in (archive, safe / "MTD_MSIL2A.xml"):
        assert np.array_equal(read_all(open_source(path, bands=["red", "B11"])).values, expected)


def test_a_product_is_told_from_a_folder_of_images(tmp_path: Path, safe: Path) -> None:
    write_raster(tmp_path / "a.tif", side_m=50)
    assert is_product(str(safe))
    assert not is_product(str(tmp_path))
    assert not is_product(str(tmp_path / "a.tif"))
    assert not is_product(str(tmp_path / "gone"))
    for level in ("1C", "2A"):
        write_safe(tmp_path / "season", level=level, side_m=120)
    assert not is_product(str(tmp_path / "season"))
    with pytest.raises(SourceError, match=r"season holds 2 products .* name one of them"):
        open_source(tmp_path / "season")


def test_a_joined_scene_pickles_as_its_path_and_is_read_by_many_threads(safe: Path) -> None:
    source = open_source(safe, bands=["B04", "B11"], mask_clouds=True)
    payload = pickle.dumps(source)
    assert len(payload) < 1000
    expected = read_all(source)
    again = pickle.loads(payload)
    windows = [Window(y, 0, 60, 480) for y in range(0, 480, 60)]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda window: again.read_level(0, window), windows))
    assert np.array_equal(np.concatenate([part.values for part in parts]), expected.values)
    assert np.array_equal(np.concatenate([part.valid for part in parts]), expected.valid)


def test_reopening_keeps_everything_but_the_bands(safe: Path) -> None:
    bounds = (WEST + 400, NORTH - 900, WEST + 700, NORTH - 500)
    source = reopen(open_source(safe, bounds=bounds, mask_clouds=True), ["B11", "B02"])
    assert [band.name for band in source.bands] == ["B11", "B02"]
    assert (source.levels[0].height, source.levels[0].width) == (40, 30)


def test_a_file_that_is_damaged_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    for name in ("B02", "B03"):
        write_raster(
            tmp_path / f"T33TWL_{name}.tif", tiled=True, blockxsize=32, blockysize=32,
            compress="deflate",
        )  # fmt: skip
    broken = tmp_path / "T33TWL_B03.tif"
    with rasterio.open(broken) as raster:
        offset = int(raster.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    with broken.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(40))
    pixels = read_all(open_source(tmp_path))
    assert [error.window for error in pixels.errors] == [Window(32, 32, 32, 32)]
    assert "B03" in pixels.errors[0].message
    assert (~pixels.valid).sum() == 32 * 32


@pytest.mark.parametrize("as_text", [False, True])
def test_landsat_level_2_is_surface_reflectance(tmp_path: Path, as_text: bool) -> None:
    path = write_landsat(tmp_path, as_text=as_text)
    source = open_source(path)
    assert [band.name for band in source.bands] == [f"B{n}" for n in range(1, 8)]
    assert source.metadata["format"] == "Landsat collection 02, L2SP"
    x = (np.arange(160) + 0.5) * 30
    stored = np.floor(9000 + x)
    expected = np.broadcast_to(stored * 0.0000275 - 0.2, (160, 160))
    np.testing.assert_allclose(read_all(source).values[..., 3], expected, atol=1e-6)
    kelvin = read_all(open_source(path, bands=["ST_B10"])).values[..., 0]
    np.testing.assert_allclose(kelvin[0], stored * 0.00341802 + 149, rtol=1e-6)
    assert [band.name for band in open_source(path, bands=["red", "2201nm"]).bands] == ["B4", "B7"]


def test_landsat_level_1_is_reflectance_under_the_sun_there_was(tmp_path: Path) -> None:
    path = write_landsat(tmp_path, level="L1TP")
    source = open_source(path)
    assert [band.name for band in source.bands] == [f"B{n}" for n in range(1, 8)]
    first = read_all(source).values[0, 0, 0]
    assert first == pytest.approx((9015 * 2e-5 - 0.1) / np.sin(np.radians(30)), rel=1e-6)
    both = open_source(path, bands=["B4", "B8"])
    assert both.levels[0].width == 319
    pan, red = read_all(both).values[5:-5, 5:-5].transpose(2, 0, 1)[::-1]
    np.testing.assert_allclose(pan, red, atol=5e-5)


def test_landsat_clouds_are_in_bits(tmp_path: Path) -> None:
    path = write_landsat(tmp_path, qa=lambda x, y: np.where(x < 1500, 22280, 21824) + 0 * y)
    valid = read_all(open_source(path, mask_clouds=True)).valid
    assert not valid[:, :50].any()
    assert valid[:, 50:].all()


def test_a_landsat_product_is_read_from_its_tar(tmp_path: Path) -> None:
    path = write_landsat(tmp_path)
    with tarfile.open(tmp_path / "product.tar", "w") as archive:
        for file in path.iterdir():
            archive.add(file, file.name)
    source = open_source(tmp_path / "product.tar", bands=["red"])
    assert np.array_equal(
        read_all(source).values, read_all(open_source(path, bands=["red"])).values
    )


def test_an_mtl_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = write_landsat(tmp_path)
    (mtl,) = path.glob("*_MTL.json")
    mtl.write_text(mtl.read_text()[:300])
    with pytest.raises(SourceError, match=r"_MTL\.json is not as USGS writes it"):
        open_source(path)


def test_metadata_of_a_safe_folder_that_are_cut_short_are_named(tmp_path: Path) -> None:
    path = write_safe(tmp_path, side_m=960)
    (path / "MTD_MSIL2A.xml").write_text("<a><b>")
    with pytest.raises(SourceError, match=r"MTD_MSIL2A\.xml is no XML .*; download it again"):
        open_source(path)


def test_a_folder_of_one_file_a_band_is_one_image(tmp_path: Path) -> None:
    for name in ("B02", "B03", "B8A"):
        write_raster(tmp_path / f"2018-10-13_Sentinel-2B_L1C_{name}.tiff")
    source = open_source(tmp_path, bands=["green", "865nm"])
    assert [band.name for band in source.bands] == ["B03", "B8A"]
    assert source.dtype == np.uint16
    assert np.array_equal(read_all(source).values[..., 0], ramp_on(10, 480).astype(np.uint16))


def test_files_of_a_folder_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    for name in ("red", "near_infrared"):
        write_raster(tmp_path / f"tile_7_{name}.tif", side_m=960)
    names = [band.name for band in open_source(tmp_path).bands]
    assert sorted(names) == ["near_infrared", "red"]


def test_two_dates_in_a_folder_are_refused(tmp_path: Path) -> None:
    for date in ("20230810", "20230815"):
        write_raster(tmp_path / f"T33TWL_{date}_B04.tif", side_m=960)
    with pytest.raises(SourceError, match=r"both .*0810_B04.* and .*0815_B04.* have a band B04"):
        open_source(tmp_path)


def test_bands_in_two_crs_or_of_two_places_are_refused_in_one_line(tmp_path: Path) -> None:
    write_raster(tmp_path / "a/B02.tif", side_m=960)
    write_raster(tmp_path / "a/B03.tif", side_m=960, crs="EPSG:32634")
    with pytest.raises(SourceError, match=r"B02 is in EPSG:32633 and B03 in EPSG:32634.*--crs"):
        open_source(tmp_path / "a")
    write_raster(tmp_path / "b/B02.tif", side_m=960)
    write_raster(tmp_path / "b/B03.tif", side_m=960, origin=(WEST + 300, NORTH))
    with pytest.raises(SourceError, match=r"B02 .* and B03 .*--bounds: all cover 500300,.*"):
        open_source(tmp_path / "b")
    shared = open_source(tmp_path / "b", bounds=(WEST + 300, NORTH - 960, WEST + 960, NORTH))
    pixels = read_all(shared)
    assert pixels.values.shape == (96, 66, 2)
    assert np.array_equal(pixels.values[..., 0], pixels.values[..., 1])


def test_bands_that_must_be_warped_need_a_crs(tmp_path: Path) -> None:
    write_raster(tmp_path / "B02.tif", crs=None, side_m=960)
    write_raster(tmp_path / "B05.tif", metres=15, crs=None, side_m=960)
    with pytest.raises(SourceError, match="has no CRS and another spacing"):
        read_all(open_source(tmp_path))


@pytest.mark.parametrize("nodata", [None, 0])
def test_a_mask_or_nodata_of_a_coarse_file_holds_on_the_fine_grid(
    tmp_path: Path, nodata: int | None
) -> None:
    write_raster(tmp_path / "B02.tif", side_m=960)
    coarse = write_raster(
        tmp_path / "B05.tif", lambda x, y: np.where(x < 480, 0, 7) + 0 * y, 20, side_m=960,
        nodata=nodata,
    )  # fmt: skip
    if nodata is None:
        with rasterio.open(coarse, "r+") as raster:
            raster.write_mask(raster.read(1) > 0)
    pixels = read_all(open_source(tmp_path))
    assert not pixels.valid[:, :48].any()
    assert pixels.valid[:, 48:].all()
    assert (pixels.values[:, 48:, 1] == 7).all()


def test_floats_that_are_no_number_do_not_spread(tmp_path: Path) -> None:
    write_raster(tmp_path / "B02.tif", side_m=960)
    write_raster(
        tmp_path / "B05.tif", lambda x, y: np.where(x < 480, np.nan, 7) + 0 * y, 20, side_m=960,
        dtype="float32",
    )  # fmt: skip
    pixels = read_all(open_source(tmp_path))
    assert not pixels.valid[:, :48].any()
    assert (pixels.values[:, 48:, 1] == 7).all()


def test_a_vrt_is_read_as_the_rasters_it_names(tmp_path: Path) -> None:
    tile = write_raster(tmp_path / "tiles/a.tif", side_m=960)
    (tmp_path / "scene.vrt").write_text(
        f"""<VRTDataset rasterXSize="96" rasterYSize="96"><SRS>EPSG:32633</SRS>
<GeoTransform>{WEST}, 10, 0, {NORTH}, 0, -10</GeoTransform>
<VRTRasterBand dataType="UInt16" band="1"><SimpleSource>
<SourceFilename relativeToVRT="1">{tile.relative_to(tmp_path)}</SourceFilename>
<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"""
    )
    source = open_source(tmp_path / "scene.vrt")
    assert source.transform == (10, 0, WEST, 0, -10, NORTH)
    assert np.array_equal(read_all(source).values[..., 0], ramp_on(10, 96).astype(np.uint16))


def assets(folder: Path) -> dict[str, object]:
    """What Earth Search says of a scene, of three bands, a picture and a classification."""
    cog = "image/tiff; application=geotiff; profile=cloud-optimized"
    named = {"red": ("B04", 0.665, 10), "rededge1": ("B05", 0.704, 20)}
    said: dict[str, object] = {
        "thumbnail": {"href": "t.jpg", "type": "image/jpeg", "roles": ["thumbnail"]},
        "visual": {"href": "TCI.tif", "type": cog, "roles": ["visual"]},
    }
    for key, (name, centre, metres) in named.items():
        write_raster(folder / f"{name}.tif", metres=metres, side_m=960)
        said[key] = {
            "href": f"./{name}.tif",
            "type": cog,
            "roles": ["data"],
            "eo:bands": [{"name": name, "common_name": key, "center_wavelength": centre}],
            "raster:bands": [{"nodata": 0, "scale": 0.0001, "offset": -0.1}],
        }
        said[f"{key}-jp2"] = {**said[key], "href": "gone.jp2", "type": "image/jp2"}  # type: ignore[dict-item]
    write_raster(
        folder / "SCL.tif", lambda x, y: np.where(y < 480, 4, 10) + 0 * x, 20, side_m=960,
        dtype="uint8",
    )  # fmt: skip
    said["scl"] = {"href": "./SCL.tif", "type": cog, "roles": ["data"]}
    return said


def test_a_stac_item_is_its_assets_on_one_grid(tmp_path: Path) -> None:
    path = write_item(tmp_path / "item.json", assets(tmp_path), platform="sentinel-2b")
    source = open_source(path)
    assert [(band.name, band.wavelength_nm) for band in source.bands] == [
        ("B04", 665.0),
        ("B05", 704.0),
    ]
    expected = ramp_on(10, 96) / 10_000 - 0.1
    pixels = read_all(source)
    for number in range(2):
        np.testing.assert_allclose(
            pixels.values[..., number][2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-6
        )
    assert source.metadata["item"] == "S2B_33TWL_20230810_0_L2A"
    masked = read_all(open_source(path, mask_clouds=True))
    assert masked.valid[:48].all()
    assert not masked.valid[48:].any()


def test_an_offset_that_is_already_applied_is_not_applied_again(tmp_path: Path) -> None:
    said = assets(tmp_path)
    path = write_item(tmp_path / "item.json", said, **{"earthsearch:boa_offset_applied": True})
    first = read_all(open_source(path, bands=["red"])).values[0, 0, 0]
    assert first == pytest.approx(ramp_on(10, 1)[0, 0] / 10_000)
    for asset in said.values():
        assert isinstance(asset, dict)
        asset.pop("raster:bands", None)
    for baseline, added in (("05.09", -0.1), ("02.14", 0.0)):
        path = write_item(tmp_path / "item.json", said, **{"s2:processing_baseline": baseline})
        first = read_all(open_source(path, bands=["red"])).values[0, 0, 0]
        assert first == pytest.approx(ramp_on(10, 1)[0, 0] / 10_000 + added)


def test_the_common_bands_of_stac_1_1_are_read(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", side_m=960)
    asset = {
        "href": "./a.tif",
        "type": "image/tiff",
        "roles": ["data"],
        "bands": [
            {"name": "N", "eo:common_name": "nir", "raster:scale": 2.0, "raster:offset": 1.0}
        ],
    }
    source = open_source(write_item(tmp_path / "item.json", {"data": asset}), bands=["nir"])
    assert read_all(source).values[0, 0, 0] == pytest.approx(2 * ramp_on(10, 1)[0, 0] + 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"type": "FeatureCollection", "features": []}, "it is a FeatureCollection"),
        ({"type": "Catalog"}, "it is a Catalog"),
        ([1], "it is a list"),
    ],
)
def test_json_that_is_no_item_is_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SourceError, match=rf"no STAC item \({message}\)"):
        open_source(path)


def test_an_item_without_rasters_says_what_it_has(tmp_path: Path) -> None:
    path = write_item(tmp_path / "a.json", {"info": {"href": "a.txt", "type": "text/plain"}})
    with pytest.raises(SourceError, match=r"none of its assets \(info\) is a raster"):
        open_source(path)


def test_a_palette_is_refused_as_a_band(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "B02.tif", dtype="uint8", side_m=960)
    write_raster(tmp_path / "B03.tif", side_m=960)
    with rasterio.open(path, "r+") as raster:
        raster.write_colormap(1, {1: (255, 0, 0, 255)})
    with pytest.raises(SourceError, match="B02 holds numbers of a colour table"):
        open_source(tmp_path)
    with pytest.raises(SourceError, match="band 1 holds numbers of a colour table"):
        open_source(path)


def test_overviews_of_the_files_are_read_at_coarse_levels(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "B02.tif", side_m=SIDE_M, tiled=True)
    write_raster(tmp_path / "B05.tif", metres=20, side_m=SIDE_M, tiled=True)
    with rasterio.open(path, "r+") as raster:
        raster.build_overviews([2, 4], Resampling.average)
    source = open_source(tmp_path)
    assert [level.width for level in source.levels] == [480, 240, 120]
    with rasterio.open(path, overview_level=1) as overview:
        assert np.array_equal(read_all(source, 2).values[..., 0], overview.read(1))
    fine = read_all(source, 1).values
    with rasterio.open(tmp_path / "B05.tif") as raster:
        # At 20 m it is read as it lies.
        assert np.array_equal(fine[..., 1], raster.read(1))
        assert raster.transform == Affine(20, 0, WEST, 0, -20, NORTH)


def test_a_real_folder_of_eight_bands_is_one_scene(shared: Path) -> None:
    folder = shared / "data/scenes/gray_sentinel2_hatteras"
    source = open_source(folder, bands=["red", "green", "blue"])
    assert [band.name for band in source.bands] == ["B04", "B03", "B02"]
    window = Window(700, 900, 50, 60)
    values = source.read_level(0, window).values
    for number, name in enumerate(("B04", "B03", "B02")):
        with rasterio.open(folder / f"2018-10-13_Sentinel-2B_L1C_{name}.tiff") as raster:
            stored = raster.read(1, window=((700, 750), (900, 960)))
        assert np.array_equal(values[..., number], stored)


def test_real_netcdf_files_of_10_and_20_m_are_one_scene_where_they_overlap(shared: Path) -> None:
    folder = shared / "data/scenes/xrspatial_s2"
    with pytest.raises(SourceError, match=r"Blue covers .* SWIR1 .*--bounds"):
        open_source(folder)
    source = open_source(folder, bounds=(600_000, 4_698_020, 603_000, 4_700_020))
    pixels = read_all(source)
    assert pixels.values.shape == (200, 300, 6)
    assert pixels.valid.all()
    swir = read_all(open_source(folder / "swir1_band.nc")).values[..., 0]
    coarse = pixels.values[..., 4].reshape(100, 2, 150, 2).mean((1, 3))
    assert np.corrcoef(coarse.ravel(), swir[:100, :150].ravel())[0, 1] > 0.99
