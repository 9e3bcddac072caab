"""What colour a slide is stained in, to say when it is not one that a model knows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
