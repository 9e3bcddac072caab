"""Scenes in Zarr and netCDF, as xarray writes them."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from product_files import NORTH, WEST, ramp

from gigavim.errors import SourceError
from gigavim.geometry import Window
from gigavim.sources import Pixels, Source, open_source

xarray = pytest.importorskip("xarray")
pytest.importorskip("rioxarray")


def read_all(source: Source) -> Pixels:
    size = source.levels[0]
    return source.read_level(0, Window(0, 0, size.height, size.width))


def plane(metres: float, size: int = 960, *, south_up: bool = False) -> object:
    """The plane as a variable of 16-bit numbers with coordinates of its own."""
    x = (np.arange(size / metres) + 0.5) * metres
    values = ramp(x[None, :], x[:, None])
    north = NORTH - x
    if south_up:
        values, north = values[::-1], north[::-1]
    return xarray.DataArray(
        values.astype(np.uint16), dims=("y", "x"), coords={"y": north, "x": WEST + x}
    )


def write(path: Path, data: object, version: int, group: str | None = None) -> Path:
    """Write a data set; zarr warns that consolidated metadata of version 3 may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.rio.write_crs("EPSG:32633").to_zarr(  # type: ignore[attr-defined]
            path, mode="a", zarr_format=version, group=group, consolidated=False
        )
    return path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("south_up", [False, True])
def test_variables_of_a_zarr_are_bands_north_up(
    tmp_path: Path, version: int, south_up: bool
) -> None:
    variable = plane(10, south_up=south_up)
    path = write(tmp_path / "s.zarr", xarray.Dataset({"B04": variable, "B8A": variable}), version)
    source = open_source(path)
    assert [(band.name, band.wavelength_nm) for band in source.bands] == [
        ("B04", 665),
        ("B8A", 865),
    ]
    assert source.dtype == np.uint16
    assert source.transform == (10, 0, WEST, 0, -10, NORTH)
    assert source.crs is not None
    assert "32633" in source.crs
    expected = plane(10).values  # type: ignore[attr-defined]
    pixels = read_all(pickle.loads(pickle.dumps(source)))
    assert pixels.valid.all()
    assert np.array_equal(pixels.values[..., 1], expected)


@pytest.mark.parametrize("version", [2, 3])
def test_groups_of_a_zarr_are_joined_on_one_grid(tmp_path: Path, version: int) -> None:
    path = tmp_path / "s.zarr"
    for name, metres in (("B02", 10), ("B05", 20), ("B09", 60)):
        write(path, xarray.Dataset({name: plane(metres)}), version, f"measurements/r{metres}m")
    source = open_source(path, bands=["B02", "B05", "B09"])
    whole = read_all(source)
    expected = plane(10).values.astype(np.float64)  # type: ignore[attr-defined]
    for number in range(3):
        gap = np.abs(whole.values[..., number][12:-12, 12:-12] - expected[12:-12, 12:-12])
        assert gap.max() <= 1  # of 36 to a pixel; numbers stay whole
    part = source.read_level(0, Window(31, 17, 20, 40))
    assert np.array_equal(part.values, whole.values[31:51, 17:57])


@pytest.mark.parametrize("version", [2, 3])
def test_scale_offset_and_fill_are_those_of_cf(tmp_path: Path, version: int) -> None:
    values = np.array([[1000.0, 2000, np.nan], [4000, 5000, 6000]]) / 10_000
    places = {"y": NORTH - 5 - 10 * np.arange(2), "x": WEST + 5 + 10 * np.arange(3)}
    variable = xarray.DataArray(values, dims=("y", "x"), coords=places)
    variable.encoding = {
        "dtype": "uint16",
        "scale_factor": 1e-4,
        "add_offset": -0.1,
        "_FillValue": 0,
    }
    path = write(tmp_path / "s.zarr", xarray.Dataset({"red": variable}), version)
    pixels = read_all(open_source(path))
    assert np.array_equal(pixels.valid, np.isfinite(values))
    np.testing.assert_allclose(pixels.values[..., 0][pixels.valid], values[pixels.valid], atol=1e-6)


def test_the_bands_of_a_cube_are_called_as_its_coordinate_says(tmp_path: Path) -> None:
    cube = xarray.concat([plane(10), plane(10) + 7], "band")  # type: ignore[operator]
    cube = cube.assign_coords(band=["red", "nir"])
    source = open_source(
        write(tmp_path / "s.zarr", xarray.Dataset({"reflectance": cube}), 3), bands=["nir"]
    )
    expected = plane(10).values + 7  # type: ignore[attr-defined]
    assert np.array_equal(read_all(source).values[..., 0], expected)


def test_a_zarr_is_cropped_and_reprojected(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zarr", xarray.Dataset({"red": plane(10)}), 3)
    cut = open_source(path, bounds=(WEST + 100, NORTH - 300, WEST + 250, NORTH - 200))
    expected = plane(10).values  # type: ignore[attr-defined]
    assert np.array_equal(read_all(cut).values[..., 0], expected[20:30, 10:25])
    moved = open_source(path, crs="EPSG:32632")
    pixels = read_all(moved)
    assert 0.5 < pixels.valid.mean() < 1
    part = moved.read_level(0, Window(30, 40, 20, 20))
    assert np.array_equal(part.valid, pixels.valid[30:50, 40:60])
    assert np.array_equal(part.values, pixels.values[30:50, 40:60])


def test_a_zarr_whose_arrays_lie_nowhere_is_no_scene(tmp_path: Path) -> None:
    data = xarray.Dataset({"a": (("row", "column"), np.zeros((4, 4)))})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.to_zarr(tmp_path / "s.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(SourceError, match="holds no OME image"):
        open_source(tmp_path / "s.zarr")
