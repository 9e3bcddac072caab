"""Any image as red, green and blue for the eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gigavim.errors import BandError
from gigavim.sources.bands import select_bands
from gigavim.sources.source import RGB, Band, Pixels


@dataclass(frozen=True)
class Stretch:
    """How bands become red, green and blue: the same for all windows of an image."""

    bands: tuple[int, ...]
    """Which of the bands are shown."""
    low: NDArray[np.float32] | None
    """What becomes 0 in each, shape (3,); None if values are shown as they are."""
    span: NDArray[np.float32] | None
    """From there to what becomes 255."""

    @classmethod
    def of(cls, pixels: Pixels, bands: Sequence[Band]) -> Stretch:
        """Choose bands and their ranges.

        Of more than three bands, those called or measuring red, green and blue are shown, or else
        the first three; of fewer, the first in grey. Each is stretched by itself from the 2nd to
        the 98th percentile of what is valid; an 8-bit RGB image is left as it is.

        Parameters
        ----------
        pixels
            Of the image, or of enough of it.
        bands
            Of the pixels.
        """
        chosen = _red_green_blue(bands)
        if tuple(bands) == RGB and pixels.values.dtype == np.uint8:
            return cls(chosen, None, None)
        if not pixels.valid.any():
            return cls(chosen, np.zeros(3, np.float32), np.ones(3, np.float32))
        values = pixels.values[..., chosen][pixels.valid].astype(np.float32)
        # Many scenes are filled with 0 where their swath ends, and do not say so.
        swath = values[values.any(axis=1)]
        low, high = np.percentile(swath if len(swath) else values, (2, 98), axis=0)
        return cls(chosen, low, np.maximum(high - low, np.finfo(np.float32).tiny))

    def apply(self, pixels: Pixels) -> NDArray[np.uint8]:
        """Return red, green and blue, white where the pixels are not valid; (height, width, 3)."""
        shown = pixels.values[..., self.bands]
        picture = np.full(shown.shape, 255, np.uint8)
        if self.low is None or self.span is None:
            picture[pixels.valid] = shown[pixels.valid]
        else:
            values = shown[pixels.valid].astype(np.float32)
            share = np.clip((values - self.low) / self.span, 0, 1)
            picture[pixels.valid] = np.rint(share * 255)
        return picture


def to_rgb(pixels: Pixels, bands: Sequence[Band]) -> NDArray[np.uint8]:
    """Show a whole image in its own colours where it has some, else in bands stretched for the eye.

    Parameters
    ----------
    bands
        Of the pixels.

    Returns
    -------
    picture
        Shape (height, width, 3); white where the pixels are not valid.
    """
    return Stretch.of(pixels, bands).apply(pixels)


def _red_green_blue(bands: Sequence[Band]) -> tuple[int, ...]:
    """Return which bands to show."""
    try:
        return select_bands(("red", "green", "blue"), bands, "")
    except BandError:
        return (0, 1, 2) if len(bands) >= 3 else (0, 0, 0)
