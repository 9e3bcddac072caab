"""A sample scene: made-up land, seen in six bands at 10 m, as a GeoTIFF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gigavim.sample.land import Cover, Land, make_land
from gigavim.sample.new_file import new_file

BANDS_NM = {"blue": 490, "green": 560, "red": 665, "nir": 842, "swir1": 1610, "swir2": 2190}
"""Centres of the bands 2, 3, 4, 8, 11 and 12 of Sentinel-2 (ESA, User Handbook, table 1)."""

REFLECTANCE = {
    Cover.LAKE: (0.040, 0.036, 0.020, 0.010, 0.006, 0.004),
    Cover.RIVER: (0.062, 0.080, 0.066, 0.026, 0.010, 0.006),
    Cover.BROADLEAF: (0.022, 0.042, 0.024, 0.380, 0.170, 0.075),
    Cover.CONIFER: (0.018, 0.030, 0.019, 0.230, 0.100, 0.045),
    Cover.MEADOW: (0.038, 0.070, 0.052, 0.340, 0.220, 0.125),
    Cover.WHEAT: (0.028, 0.056, 0.032, 0.450, 0.190, 0.085),
    Cover.MAIZE: (0.042, 0.074, 0.062, 0.310, 0.215, 0.125),
    Cover.RAPESEED: (0.045, 0.130, 0.105, 0.430, 0.200, 0.100),
    Cover.STUBBLE: (0.080, 0.118, 0.160, 0.275, 0.330, 0.250),
    Cover.SOIL: (0.085, 0.120, 0.165, 0.230, 0.310, 0.270),
    Cover.MOIST_SOIL: (0.050, 0.070, 0.095, 0.140, 0.195, 0.165),
    Cover.TILES: (0.085, 0.110, 0.165, 0.225, 0.255, 0.220),
    Cover.CONCRETE: (0.170, 0.195, 0.215, 0.245, 0.260, 0.240),
    Cover.ASPHALT: (0.085, 0.095, 0.105, 0.125, 0.140, 0.130),
}
"""Reflectance at the surface, from 0 to 1, in each of `BANDS_NM`.

Rounded figures, set by hand to the shapes of the curves of these materials in the spectral
libraries of USGS (Kokaly et al. 2017, version 7) and ECOSTRESS (Meerdink et al. 2019), darker where
a pixel of 10 m would hold shade.
"""

SCALE = 1e-4
"""Reflectance to one count."""

CORNER = (600_000.0, 5_300_040.0)
"""East and north of the top-left corner, in EPSG:32632, in metres."""


def make_scene(path: Path, *, shape: tuple[int, int] = (2600, 3000)) -> None:
    """Write a scene of 30 x 26 km with the layout of a cloud-optimized GeoTIFF.

    Six bands of uint16 counts of 1e-4 reflectance, named, with their wavelengths; 0 where the
    sensor saw nothing, at both sides of its tilted swath. The same file comes out each time.

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
    from rasterio.io import MemoryFile
    from rasterio.shutil import copy

    with new_file(path) as unfinished:
        rng = np.random.default_rng(20)
        height, width = shape
        land = make_land(height, width, rng)
        seen = swath(height, width)
        with MemoryFile() as memory:
            with memory.open(
                driver="GTiff",
                height=height,
                width=width,
                count=len(BANDS_NM),
                dtype="uint16",
                nodata=0,
                crs="EPSG:32632",
                transform=rasterio.Affine(10, 0, CORNER[0], 0, -10, CORNER[1]),
            ) as image:
                image.scales = [SCALE] * len(BANDS_NM)
                for number, (name, centre_nm) in enumerate(BANDS_NM.items(), 1):
                    spectra = [REFLECTANCE[cover][number - 1] for cover in Cover]
                    image.write(np.where(seen, counts(land, spectra, rng), 0), number)
                    image.set_band_description(number, name)
                    # Where GDAL keeps them: gdal.org/user/raster_data_model.html, IMAGERY domain.
                    image.update_tags(
                        number, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=f"{centre_nm / 1000:.3f}"
                    )
            with MemoryFile() as packed:
                copy(
                    memory.name,
                    packed.name,
                    driver="COG",
                    compress="DEFLATE",
                    predictor="YES",
                    overview_resampling="AVERAGE",
                    num_threads="ALL_CPUS",
                )
                # GDAL would not say in a way that one can catch why a disk refuses.
                unfinished.write_bytes(packed.getbuffer())


def counts(
    land: Land, reflectance: Sequence[float], rng: np.random.Generator
) -> NDArray[np.uint16]:
    """Return what the sensor counts in one band; never 0, which means that it saw nothing.

    Parameters
    ----------
    reflectance
        Of each `Cover`, in this band.
    """
    from scipy import ndimage

    light = np.array(reflectance, np.float32)[land.cover] * land.brightness
    # Light from the neighbours: a point spreads over half a pixel or so.
    light = ndimage.gaussian_filter(light, 0.55)
    light += 0.0015 * rng.standard_normal(light.shape, np.float32)
    return np.asarray(np.clip(np.rint(light / SCALE), 1, 10_000), np.uint16)


def swath(height: int, width: int, rows: slice = slice(None)) -> NDArray[np.bool_]:
    """Return which pixels of some rows lie under the orbit, which runs to the south-south-west."""
    y, x = np.arange(height)[rows, None], np.arange(width)
    along = x + 0.14 * y
    return np.asarray((along > 0.14 * width) & (along < 1.04 * width), np.bool_)
