"""Any image as red, green and blue for the eye."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gigavim.errors import BandError
from gigavim.sources.bands import select_bands
from gigavim.sources.source import RGB, Band, Pixels


def to_rgb(pixels: Pixels, bands: Sequence[Band]) -> NDArray[np.uint8]:
    """Show an image in its own colours where it has some, else in bands stretched for the eye.

    Of more than three bands, those called or measuring red, green and blue are shown, or else the
    first three; of fewer, the first in grey. Each is stretched by itself from the 2nd to the 98th
    percentile of what is valid; an 8-bit RGB image is left as it is.

    Parameters
    ----------
    bands
        Of the pixels.

    Returns
    -------
    picture
        Shape (height, width, 3); white where the pixels are not valid.
    """
    shown = pixels.values[..., _red_green_blue(bands)]
    picture = np.full(shown.shape, 255, np.uint8)
    if tuple(bands) == RGB and shown.dtype == np.uint8:
        picture[pixels.valid] = shown[pixels.valid]
    elif pixels.valid.any():
        values = shown[pixels.valid].astype(np.float32)
        # Many scenes are filled with 0 where their swath ends, and do not say so.
        swath = values[values.any(axis=1)]
        low, high = np.percentile(swath if len(swath) else values, (2, 98), axis=0)
        span = np.maximum(high - low, np.finfo(np.float32).tiny)
        picture[pixels.valid] = np.rint(np.clip((values - low) / span, 0, 1) * 255)
    return picture


def _red_green_blue(bands: Sequence[Band]) -> tuple[int, ...]:
    """Return which bands to show."""
    try:
        return select_bands(("red", "green", "blue"), bands, "")
    except BandError:
        return (0, 1, 2) if len(bands) >= 3 else (0, 0, 0)
