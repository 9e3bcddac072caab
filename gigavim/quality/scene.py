"""Faults of scenes: cloud and shadow where the scene's own QA band says so, saturation, borders."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.foreground import thumbnail
from gigavim.geometry import Grid, Window
from gigavim.masks import Mask, covered
from gigavim.quality.findings import Fault, Quality, percent
from gigavim.sources import open_source
from gigavim.sources.source import Source

CLOUD = Fault("cloud", (86, 180, 233))
SHADOW = Fault("cloud shadow", (0, 114, 178))
SATURATED = Fault("saturated", (213, 94, 0))
ZEROS = Fault("undeclared border", (90, 90, 90))

LANDSAT_QA = "qapixel"
LANDSAT_CLOUD = 0b1110
"""Bits 1 to 3 of QA_PIXEL: dilated cloud, cirrus, cloud.

USGS, Landsat 8-9 Collection 2 Level 2 Science Product Guide, table 6-3; of Landsat 4 to 7, whose
bit 2 is not used, the same. Bit 0 is fill, bit 4 cloud shadow.
"""
LANDSAT_SHADOW = 0b10000
LANDSAT_FILL = 0b1

SENTINEL_2_SCL = "scl"
SCL_CLOUD = (8, 9, 10)
"""Cloud of medium and high probability, thin cirrus.

ESA, Sentinel-2 Level-2A Algorithm Theoretical Basis Document, scene classification. 0 is no data, 1
saturated or defective, 3 cloud shadow.
"""
SCL_SHADOW = (3,)

SIDE = 8192
"""A larger QA band is looked at in every second, third, ... pixel: classes have no mean."""


def examine_scene(source: Source, grid: Grid, foreground: NDArray[np.bool_]) -> Quality:
    """Look for faults of a scene; see `examine`.

    The QA band is looked for in the file itself, whichever of its bands are read.
    """
    words: list[str] = []
    nothing = np.zeros(grid.shape, np.bool_)
    cloud = shadow = nothing
    qa = _qa_band(source)
    if qa is None:
        words.append("no QA band (QA_PIXEL, SCL): clouds were not looked for")
    else:
        values, step = _every(qa, SIDE)
        is_cloud, is_shadow = cloud_and_shadow(values, _plain(qa.bands[0].name))
        cloud, shadow = (covered(Mask(m, step, step), grid) for m in (is_cloud, is_shadow))
    saturated, zeros, nodata = _numbers(source, grid, words)
    masks = {SHADOW: shadow, CLOUD: cloud, SATURATED: saturated, ZEROS: zeros}
    quality = Quality.of(masks, foreground, (), borders=(ZEROS,))
    for name, share in quality.shares.items():
        if share and name != ZEROS.name:
            words.append(f"{name}: {percent(share)} of the data")
    if nodata:
        words.append(f"no data: {percent(nodata)} of the image")
    return Quality(quality.labels, quality.names, quality.colours, quality.shares, tuple(words))


def cloud_and_shadow(
    values: NDArray[Any], band: str
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Read cloud and cloud shadow out of a QA band.

    Parameters
    ----------
    band
        ``qapixel`` for Landsat's bits, ``scl`` for Sentinel-2's classes.

    Examples
    --------
    >>> cloud_and_shadow(np.array([21824, 22280, 23888]), "qapixel")
    (array([False,  True, False]), array([False, False,  True]))
    """
    whole = values.astype(np.int64)
    if band == LANDSAT_QA:
        seen = whole & LANDSAT_FILL == 0
        return seen & (whole & LANDSAT_CLOUD > 0), seen & (whole & LANDSAT_SHADOW > 0)
    return np.isin(whole, SCL_CLOUD), np.isin(whole, SCL_SHADOW)


def _qa_band(source: Source) -> Source | None:
    """Open the QA band of a scene, if it has one of the sizes of the others."""
    for band in open_source(source.path).bands:
        if _plain(band.name) in (LANDSAT_QA, SENTINEL_2_SCL):
            return open_source(source.path, bands=[band.name])
    return None


def _plain(name: str) -> str:
    """Fold case and separators: ``QA_PIXEL`` and ``qa pixel`` are one."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _every(source: Source, side: int) -> tuple[NDArray[Any], int]:
    """Read the first band of level 0, every so many pixels; 0 where there is no data."""
    finest = source.levels[0]
    step = -(-max(finest.height, finest.width) // side)
    rows = 512 * step
    strips = []
    for y in range(0, finest.height, rows):
        window = Window(y, 0, min(rows, finest.height - y), finest.width)
        strips.append(source.read_level(0, window).values[::step, ::step, 0])
    return np.concatenate(strips), step


def _numbers(
    source: Source, grid: Grid, words: list[str]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], float]:
    """Return saturated patches, those in a border of zeros, and the share without data."""
    pixels, ratio_y, ratio_x = thumbnail(source, 2048)
    saturated = np.zeros(grid.shape, np.bool_)
    top = _top(source)
    if top is None:
        words.append(f"values are {source.dtype}: saturation was not looked for")
    else:
        # Averaged pixels are saturated where all of what they average is.
        full = pixels.valid & (pixels.values >= top).any(axis=2)
        saturated = covered(Mask(full, ratio_y, ratio_x), grid)
        share = full.sum() / max(1, pixels.valid.sum())
        if share:
            words.append(
                f"{percent(share)} of the pixels have a band at {top:,}, the most it holds"
            )
    zeros = zero_border(pixels.values, pixels.valid)
    if zeros.any():
        words.append(
            f"{percent(zeros.mean())} of the image is 0 in every band along its border and not "
            "declared as nodata; it is left out"
        )
    return saturated, covered(Mask(zeros, ratio_y, ratio_x), grid), float((~pixels.valid).mean())


def _top(source: Source) -> int | None:
    """Return the largest value that the sensor's numbers have; None where that is not known."""
    return None if source.dtype.kind not in "iu" else int(np.iinfo(source.dtype).max)


def zero_border(values: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find what is 0 in each of several bands and joins the rim of the image.

    Parameters
    ----------
    values
        Shape (height, width, band).
    valid
        Shape (height, width).
    """
    from scipy import ndimage

    if values.shape[2] == 1:
        return np.zeros_like(valid)
    parts, count = ndimage.label(valid & ~values.any(axis=2))
    rim = np.zeros(count + 1, np.bool_)
    for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        rim[edge] = True
    rim[0] = False
    return np.asarray(rim[parts], np.bool_)
