"""Cell nuclei, one by one: from maps of probability and distance to instances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTPUTS = ("nucleus", "depth")
"""What the decoder of such a model predicts of a pixel, as logits."""


@dataclass(frozen=True, slots=True)
class NucleiConfig:
    """From what on a pixel belongs to a nucleus, and how touching ones are told apart."""

    nucleus: float = 0.5
    """Least probability that a pixel of a nucleus has."""
    seed: float = 0.5
    """Depth from which on pixels are the seed of a nucleus."""
    smallest: int = 20
    """Least area of a nucleus, in pixels of the model's spacing."""


def depth_of(labels: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Return how deep in its nucleus each pixel lies: 0 outside and up to 1 in the middle.

    The distance to the edge of the nucleus by the greatest one in it, so that touching nuclei are
    valleys apart whatever their size (as Naylor et al. 2018, doi 10.1109/TMI.2018.2865709, by
    nucleus). The image is mirrored at its rim, where nuclei are cut.
    """
    from scipy.ndimage import distance_transform_edt
    from skimage.measure import regionprops

    margin = min(32, *(side - 1 for side in labels.shape))
    mirrored = np.pad(labels, margin, mode="reflect")
    depth = np.zeros(mirrored.shape, np.float32)
    for nucleus in regionprops(mirrored):  # type: ignore[no-untyped-call]
        distance = distance_transform_edt(np.pad(nucleus.image, 1))[1:-1, 1:-1]
        depth[nucleus.slice] += distance * nucleus.image / distance.max()
    return depth[margin:-margin, margin:-margin]


def instances(
    nucleus: NDArray[np.floating[Any]], depth: NDArray[np.floating[Any]], config: NucleiConfig
) -> NDArray[np.int32]:
    """Tell nuclei apart: a watershed from the seeds of the depth map.

    Parameters
    ----------
    nucleus, depth
        Shape (height, width), 0 to 1; NaN counts as 0.

    Returns
    -------
    labels
        0 outside nuclei, else the number of the nucleus.
    """
    from scipy.ndimage import label
    from skimage.segmentation import watershed

    inside = nucleus > config.nucleus
    seeds, _ = label(inside & (depth > config.seed))
    labels = watershed(-depth, seeds, mask=inside)  # type: ignore[no-untyped-call]
    areas = np.bincount(labels.ravel())
    labels[areas[labels] < config.smallest] = 0
    return np.asarray(labels, np.int32)
