"""A sample scene of full size: a tile of Sentinel-2, 110 x 110 km in 13 bands, as a GeoTIFF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gigavim.sample.land import Cover, make_land
from gigavim.sample.new_file import new_file
from gigavim.sample.noise import smooth_noise
from gigavim.sample.scene import BANDS_NM, CORNER, REFLECTANCE, SCALE, counts, swath

NAMES_NM = {
    "B01": 443, "B02": 490, "B03": 560, "B04": 665, "B05": 705, "B06": 740, "B07": 783, "B08": 842,
    "B8A": 865, "B09": 945, "B10": 1375, "B11": 1610, "B12": 2190,
}  # fmt: skip
"""Centres of the bands of Sentinel-2 (ESA, User Handbook, table 1)."""

CIRRUS = 0.01
"""Share of the ground's light that comes through in B10: water vapour takes the rest."""

LAID = 4
"""To a side: a stretch of land is laid so often, each next to its mirror image."""
TILE = 512
NOISE = 12
"""Of a sensor and its air, in counts: what is mirrored differs all the same."""


def make_full_scene(path: Path, *, shape: tuple[int, int] = (10_980, 10_980)) -> None:
    """Write a scene of the size of a tile of Sentinel-2, in minutes and two gigabytes of memory.

    13 bands of uint16 counts of 1e-4 reflectance, all at 10 m, named, with their wavelengths, tiled
    and with overviews; 0 where the sensor saw nothing. The same pixels come out each time.

    The land is a quarter as high and wide as the scene, mirrored from place to place under light
    that varies slowly: for time and memory, not for accuracy. Reflectance between the centres of
    `BANDS_NM` lies on straight lines.

    Parameters
    ----------
    shape
        Height and width, in pixels of 10 m.

    Raises
    ------
    StoreError
        If the file is there already or cannot be written.
    """
    import rasterio
    from rasterio.enums import Resampling

    height, width = shape
    rng = np.random.default_rng(21)
    bands = _stretch(-(-height // LAID), -(-width // LAID), rng)
    noise = np.rint(NOISE * rng.standard_normal(bands[0].shape, np.float32)).astype(np.int16)
    light = 1 + 0.06 * smooth_noise((-(-height // TILE) + 1, -(-width // TILE) + 1), 8, rng)
    down, across = (_mirrored(side, of) for side, of in zip(shape, noise.shape, strict=True))
    with new_file(path) as unfinished, rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"):
        with rasterio.open(
            unfinished,
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=len(bands),
            dtype="uint16",
            nodata=0,
            crs="EPSG:32632",
            transform=rasterio.Affine(10, 0, CORNER[0], 0, -10, CORNER[1]),
            tiled=True,
            blockxsize=TILE,
            blockysize=TILE,
            interleave="band",
            compress="ZSTD",
            zstd_level=1,
            predictor=2,
            bigtiff="YES",
        ) as image:
            image.scales = [SCALE] * len(bands)
            for number, (name, centre_nm) in enumerate(NAMES_NM.items(), 1):
                image.set_band_description(number, name)
                image.update_tags(
                    number, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=f"{centre_nm / 1000:.3f}"
                )
            for top in range(0, height, TILE):
                rows = np.arange(top, min(top + TILE, height))
                seen = swath(height, width, slice(top, top + len(rows)))
                lit = _between(light, rows, width)
                window = rasterio.windows.Window(0, top, width, len(rows))
                for number, band in enumerate(bands, 1):
                    values = band[down[rows]][:, across] * lit
                    values += _shifted(noise, rows, width, number)
                    values = np.where(seen, np.clip(values, 1, 10_000), 0).astype(np.uint16)
                    image.write(values, number, window=window)
        with rasterio.open(unfinished, "r+") as image:
            factors = [2**n for n in range(1, 7) if max(shape) / 2**n > TILE / 2]
            image.build_overviews(factors, Resampling.average)


def _stretch(height: int, width: int, rng: np.random.Generator) -> list[NDArray[np.uint16]]:
    """Return the counts of a stretch of land in each band."""
    land = make_land(height, width, rng)
    known = list(BANDS_NM.values())
    bands = []
    for name, centre_nm in NAMES_NM.items():
        share = CIRRUS if name == "B10" else 1.0
        spectra = [share * np.interp(centre_nm, known, REFLECTANCE[cover]) for cover in Cover]
        bands.append(counts(land, spectra, rng))
    return bands


def _mirrored(side: int, of: int) -> NDArray[np.intp]:
    """Return which row of a stretch each row of the scene shows, there and back again."""
    there = np.arange(side) % (2 * of)
    return np.minimum(there, 2 * of - 1 - there)


def _between(light: NDArray[np.float32], rows: NDArray[np.intp], width: int) -> NDArray[np.float32]:
    """Return the light on some rows, between the corners of tiles."""
    y, x = rows / TILE, np.arange(width) / TILE
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    upper, lower = (
        light[row][:, left] * (1 - (x - left)) + light[row][:, left + 1] * (x - left)
        for row in (top, top + 1)
    )
    share = (y - top)[:, None]
    return np.asarray(upper * (1 - share) + lower * share, np.float32)


def _shifted(
    noise: NDArray[np.int16], rows: NDArray[np.intp], width: int, band: int
) -> NDArray[np.int16]:
    """Return noise that differs from band to band and from one stretch of land to the next."""
    height, side = noise.shape
    columns = np.arange(width)
    down = (rows * 3 + 811 * band) % height
    across = (columns + 1283 * band + 97 * (columns // side)) % side
    return np.asarray(noise[down][:, across])
