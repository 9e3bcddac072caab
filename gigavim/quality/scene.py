"""Faults of scenes: cloud and shadow where the scene's own QA band says so, saturation, borders."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.errors import BandError
from gigavim.foreground import filled, thumbnail
from gigavim.geometry import Grid, Window
from gigavim.masks import Mask, covered
from gigavim.quality.findings import Fault, Quality, percent
from gigavim.sources import reopen
from gigavim.sources.clouds import QUALITY_BANDS, cloud_and_shadow
from gigavim.sources.source import Source
from gigavim.sources.stack import StackSource

CLOUD = Fault("cloud", (86, 180, 233))
SHADOW = Fault("cloud shadow", (0, 114, 178))
SATURATED = Fault("saturated", (213, 94, 0))
ZEROS = Fault("undeclared border", (90, 90, 90))

SIDE = 8192
"""A larger QA band is looked at in every second, third, ... pixel: classes have no mean."""


def examine_scene(source: Source, grid: Grid, foreground: NDArray[np.bool_]) -> Quality:
    """Look for faults of a scene; see `examine`."""
    words: list[str] = []
    cloud = shadow = np.zeros(grid.shape, np.bool_)
    seen = _clouds(source)
    if seen is None:
        words.append("no QA band (QA_PIXEL, SCL): clouds were not looked for")
    else:
        cloud, shadow = (covered(mask, grid) for mask in seen)
        if isinstance(source, StackSource) and source.options.mask_clouds:
            gone = percent((cloud | shadow).mean())
            words.append(f"clouds and their shadows are {gone} of the image, and left out")
    saturated, zeros, nodata = _numbers(source, grid, words)
    masks = {SHADOW: shadow, CLOUD: cloud, SATURATED: saturated, ZEROS: zeros}
    quality = Quality.of(masks, foreground, (), borders=(ZEROS,))
    for name, share in quality.shares.items():
        if share and name != ZEROS.name:
            words.append(f"{name}: {percent(share)} of the data")
    if nodata:
        words.append(f"no data: {percent(nodata)} of the image")
    return Quality(quality.labels, quality.names, quality.colours, quality.shares, tuple(words))


def _clouds(source: Source) -> tuple[Mask, Mask] | None:
    """Read where clouds and their shadows are; None where no band says it.

    The quality band is looked for in the file itself, whichever of its bands are read.
    """
    if isinstance(source, StackSource):
        if source.quality is None:
            return None
        fine = [n for n, each in enumerate(source.levels) if max(each.height, each.width) >= SIDE]
        level, name = max(fine, default=0), source.quality.band.name
        read = partial(source.read_quality, level)
    else:
        qa = _qa_band(source)
        if qa is None:
            return None
        level, name = 0, qa.bands[0].name
        read = partial(_first_band, qa)
    size = source.levels[level]
    step = -(-max(size.height, size.width) // SIDE)
    strips = []
    for y in range(0, size.height, 512 * step):
        window = Window(y, 0, min(512 * step, size.height - y), size.width)
        strips.append(cloud_and_shadow(read(window)[::step, ::step], name))
    cloud, shadow = (np.concatenate(parts) for parts in zip(*strips, strict=True))
    ratio_y, ratio_x = step * size.downsample_y, step * size.downsample_x
    return Mask(cloud, ratio_y, ratio_x), Mask(shadow, ratio_y, ratio_x)


def _first_band(source: Source, window: Window) -> NDArray[Any]:
    return source.read_level(0, window).values[..., 0]


def _qa_band(source: Source) -> Source | None:
    """Open the quality band of a single file, if it has one."""
    for name in QUALITY_BANDS:
        try:
            return reopen(source, [name])
        except BandError:
            continue
    return None


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
    zeros = at_rim(filled(pixels, source.bands))
    if zeros.any():
        words.append(
            f"{percent(zeros.mean())} of the image is 0 in every band along its border and not "
            "declared as nodata; it is left out"
        )
    return saturated, covered(Mask(zeros, ratio_y, ratio_x), grid), float((~pixels.valid).mean())


def _top(source: Source) -> int | None:
    """Return the largest value that the sensor's numbers have; None where that is not known."""
    return None if source.dtype.kind not in "iu" else int(np.iinfo(source.dtype).max)


def at_rim(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep those parts of a mask that join the rim of the image."""
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    rim = np.zeros(count + 1, np.bool_)
    for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        rim[edge] = True
    rim[0] = False
    return np.asarray(rim[parts], np.bool_)
