"""Textures of haematoxylin and eosin, out of the one tissue photograph that scikit-image ships.

The photograph shows glands of the colon, stained with haematoxylin and, for one protein, brown DAB
(`skimage.data.immunohistochemistry`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.sample.quilt import quilt

HAEMATOXYLIN = (0.563, 0.720, 0.406)
EOSIN = (0.216, 0.801, 0.558)
"""Optical density per unit of stain in red, green and blue: the reference vectors of Macenko et
al., "A method for normalizing histology slides", ISBI 2009."""

GLANDS, EPITHELIUM, STROMA, MUSCLE = range(4)
"""Index of each texture."""


def textures(side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return large textures of tissues.

    Returns
    -------
    textures
        Haematoxylin and eosin of each texture, shape (4, 2, side, side); opposite edges meet
        without a seam.
    """
    from scipy import ndimage
    from skimage.data import immunohistochemistry

    picture, brown, dark = _restained(immunohistochemistry())  # type: ignore[no-untyped-call]
    epithelium = ndimage.gaussian_filter(brown, 6) > 0.45
    stroma = ~epithelium & (ndimage.gaussian_filter(dark, 6) > 0.07)
    tissue = ndimage.gaussian_filter(dark, 4) > 0.07
    kinds: list[dict[str, Any]] = [
        {"usable": tissue, "step": 128, "overlap": 64, "turns": (0, 1, 2, 3)},
        {"usable": epithelium, "step": 64, "overlap": 40, "turns": (0, 1, 2, 3)},
        {"usable": stroma, "step": 64, "overlap": 16, "turns": (0, 1, 2, 3)},
        {"usable": stroma, "step": 64, "overlap": 16, "turns": (0, 2)},
    ]
    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(quilt, picture, side=side, rng=own, **kind)
            for kind, own in zip(kinds, rng.spawn(len(kinds)), strict=True)
        ]
        made = np.stack([job.result() for job in jobs])
    # Fibres of muscle run one way.
    made[MUSCLE, 1] = ndimage.gaussian_filter(
        np.minimum(made[MUSCLE, 1], 0.4), (9, 0.7), mode="wrap"
    )
    return made


def _restained(
    photograph: NDArray[np.uint8],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return the photograph in haematoxylin and eosin, its DAB, and its mean density."""
    from skimage.color import rgb2hed

    # rgb2hed counts in units of ln(1e6).
    haematoxylin, _, brown = np.moveaxis(rgb2hed(photograph), 2, 0) * np.log(1e6)
    white = np.percentile(photograph, 99.5, axis=(0, 1))
    dark = -np.log(np.clip(photograph / white, 0.01, 1)).mean(axis=2)
    # Eosin takes to what DAB brought out, less steeply, and to the fibres, which stayed as pale as
    # the weakest haematoxylin; what is left of that is nuclei.
    fibres = np.clip(haematoxylin - 0.04, 0, 0.25)
    eosin = 0.32 * np.maximum(brown, 0) ** 0.7 + 1.1 * fibres
    nuclei = 2.1 * np.maximum(haematoxylin - 0.14, 0)
    return np.stack([nuclei, eosin]).astype(np.float32), brown, dark
