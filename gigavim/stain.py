"""What colours a slide has: of its stain, and of its glass."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.sources.source import Pixels

LIGHTEST = 1 / 255


def stain_shares(image: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the share of each band in the optical density of an image.

    Independent of how strong the stain is and how much glass there is: haematoxylin and eosin take
    most from green, DAB from blue, a fluorescence image as much from each.

    Parameters
    ----------
    image
        0 to 1, shape (..., band).

    Examples
    --------
    >>> stain_shares(np.array([[[1.0, 0.1, 1.0], [1.0, 1.0, 1.0]]])).round(2)
    array([0., 1., 0.])
    """
    density = -np.log(np.clip(image.astype(np.float64), LIGHTEST, 1))
    total = density.reshape(-1, density.shape[-1]).sum(0)
    return np.asarray(total / max(total.sum(), LIGHTEST))


def glass(pixels: Pixels) -> NDArray[np.float64]:
    """Return the colour of glass: of the lightest tenth, full white where that is stained.

    Parameters
    ----------
    pixels
        A thumbnail in 8-bit red, green and blue.

    Returns
    -------
    white
        As shares of full intensity, shape (3,).
    """
    seen = pixels.values[pixels.valid]
    if not len(seen):
        return np.ones(3)
    palest = seen.min(axis=1)
    white = np.median(seen[palest >= np.percentile(palest, 90)], axis=0) / 255
    return np.asarray(white) if white.min() >= max(0.85 * white.max(), 0.6) else np.ones(3)
