"""Tissue on a slide, found on a thumbnail and without a model."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gigavim.sources.source import Pixels

LEAST_PIXELS = 64
"""Specks and holes of fewer thumbnail pixels are taken as what surrounds them."""


def tissue(pixels: Pixels) -> NDArray[np.bool_]:
    """Find the tissue of a thumbnail.

    Brightfield, where 1 % of the pixels or more are light, or few are dark: colours are smoothed by
    one pixel, which quiets sensor and JPEG noise, and balanced to the background if a light one is
    there. Tissue is more saturated than Otsu's threshold, which is held between 0.04 and 0.05:
    below lies the noise of an empty slide, and above it would part strong tissue from faint, or
    split a slide that is all tissue. Black scanner borders are left out.

    Dark background (fluorescence): tissue is brighter than Otsu's threshold over the logarithm of
    the brightest channel, and by at least 5 of 255 brighter than the background.

    Parts up to four pixels apart are joined, and specks and holes of fewer than 64 pixels go.

    Parameters
    ----------
    pixels
        At 4 to 50 µm per pixel or so. The first three bands are taken as red, green and blue, fewer
        as grey; other types than uint8 are scaled to their 99.9th percentile.

    Returns
    -------
    tissue
        Shape (height, width).
    """
    colours = _eight_bit(pixels)
    light, dark = colours.max(axis=2), colours.min(axis=2)
    seen = light[pixels.valid]
    if not seen.size:
        return np.zeros_like(pixels.valid)
    if np.mean(dark[pixels.valid] >= 128) < 0.01 and np.percentile(seen, 25) < 48:
        found = _bright(light, pixels.valid)
    else:
        found = _saturated(colours, pixels.valid & (light > 24))
    joined = _closed(found) & pixels.valid
    return ~_without_specks(~_without_specks(joined))


def _eight_bit(pixels: Pixels) -> NDArray[np.float32]:
    """Return red, green and blue from 0 to 255."""
    values = pixels.values[..., :3] if pixels.values.shape[2] >= 3 else pixels.values[..., :1]
    colours = values.astype(np.float32)
    if values.dtype != np.uint8 and pixels.valid.any():
        top = float(np.percentile(colours[pixels.valid], 99.9))
        colours = np.clip(colours * (255 / top if top > 0 else 0), 0, 255)
    return colours


def _smooth(values: NDArray[np.float32], weight: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Blur by one pixel over what has weight."""
    from scipy import ndimage

    share = ndimage.gaussian_filter(weight.astype(np.float32), 1.0)
    blurred = np.stack(
        [
            ndimage.gaussian_filter(np.where(weight, band, 0), 1.0)
            for band in np.moveaxis(values, 2, 0)
        ],
        axis=2,
    )
    return np.asarray(blurred / np.maximum(share, 1e-6)[..., None], np.float32)


def _saturated(colours: NDArray[np.float32], usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find tissue on a light background."""
    if not usable.any():
        return usable
    smooth = _smooth(colours, usable)
    palest = smooth[usable].min(axis=1)
    background = np.median(smooth[usable][palest >= np.percentile(palest, 90)], axis=0)
    if background.min() >= 0.92 * background.max() and background.max() >= 160:
        smooth = smooth * (background.max() / background)
    top = smooth.max(axis=2)
    # A grey slide has no saturation; how much darker than the background it is says the same.
    white = background.max() if smooth.shape[2] == 1 else top
    saturation = (white - smooth.min(axis=2)) / np.maximum(white, 1)
    level = min(max(_otsu(saturation[usable]), 0.04), 0.05)
    return np.asarray(usable & (saturation > level), np.bool_)


def _bright(light: NDArray[np.float32], usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find what shines on a dark background."""
    smooth = _smooth(light[..., None], usable)[..., 0]
    background = float(np.percentile(smooth[usable], 1))
    level = max(_otsu(np.log1p(smooth[usable])), math.log1p(background + 5))
    return np.logical_and(usable, np.log1p(smooth) > level)


def _otsu(values: NDArray[np.float32]) -> float:
    """Return the threshold that parts values best in two (Otsu 1979)."""
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(values))  # type: ignore[no-untyped-call]


def _closed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Join what is up to four pixels apart: the cells of one tissue."""
    from scipy import ndimage

    # Padded by its rim, or closing would erode what touches the edge of the image.
    padded = np.pad(mask, 5, mode="edge")
    disk = np.hypot(*np.mgrid[-2:3, -2:3]) <= 2.3
    return np.asarray(ndimage.binary_closing(padded, disk)[5:-5, 5:-5], np.bool_)


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drop connected parts of fewer than `LEAST_PIXELS`."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    kept = np.bincount(parts.ravel()) >= LEAST_PIXELS
    kept[0] = False
    return np.asarray(kept[parts], np.bool_)
