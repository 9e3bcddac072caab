"""Cell nuclei, one by one: from maps of probability and depth to outlines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTPUTS = ("nucleus", "depth")
"""What the decoder of such a model predicts of a pixel, as logits."""
TOLERANCE = 0.25
"""In pixels."""


@dataclass(frozen=True, slots=True)
class NucleiConfig:
    """From what on a pixel belongs to a nucleus, and how touching ones are told apart."""

    nucleus: float = 0.5
    """Least probability that a pixel of a nucleus has."""
    seed: float = 0.5
    """Depth from which on pixels are the seed of a nucleus."""
    smallest: int = 20
    """Least area of a nucleus, in pixels of the model's spacing."""


@dataclass(frozen=True, slots=True)
class Nuclei:
    """A table with a row for each nucleus."""

    centroids: NDArray[np.float64]
    """x and y, in pixels counted from the corner of the first one, shape (n, 2)."""
    areas: NDArray[np.float64]
    """In pixels, shape (n,)."""
    probabilities: NDArray[np.float64]
    """Mean over the pixels of each, shape (n,)."""
    vertices: NDArray[np.float64]
    """x and y of the outlines' corners, all nuclei's one after the other, shape (v, 2)."""
    ends: NDArray[np.int64]
    """One past the last vertex of each nucleus, which is its first once more, shape (n,)."""

    def outlines(self) -> list[NDArray[np.float64]]:
        """Return the corners of each nucleus."""
        return np.split(self.vertices, self.ends[:-1]) if len(self.ends) else []


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


def measure(
    labels: NDArray[np.int32],
    nucleus: NDArray[np.floating[Any]],
    depth: NDArray[np.floating[Any]],
    config: NucleiConfig,
    owned: tuple[slice, slice],
) -> Nuclei:
    """Describe the nuclei of a part of an image.

    A nucleus belongs to the part that the middle of its seed lies in. Windows that overlap by more
    than a seed see the same seeds, so of all windows exactly one describes a nucleus.

    Parameters
    ----------
    labels
        What `instances` made of `nucleus` and `depth`.
    owned
        Rows and columns of the part.
    """
    from skimage.measure import find_contours, regionprops

    rows, columns = owned
    centroids, areas, probabilities, outlines = [], [], [], []
    for region in regionprops(labels):  # type: ignore[no-untyped-call]
        top, left = region.bbox[:2]
        inside = region.image
        y, x = np.nonzero(inside & (depth[region.slice] > config.seed))
        if not (rows.start <= y.mean() + top < rows.stop):
            continue
        if not (columns.start <= x.mean() + left < columns.stop):
            continue
        filled = np.pad(region.image_filled, 1).astype(np.float32)
        outline = max(find_contours(filled, 0.5), key=len)  # type: ignore[no-untyped-call]
        # Contours count from the centre of a pixel, and this one from that of the pad.
        outlines.append(_simple(outline[:, ::-1] + (left - 0.5, top - 0.5)))
        centroids.append((region.centroid[1] + 0.5, region.centroid[0] + 0.5))
        areas.append(filled.sum())
        probabilities.append(nucleus[region.slice][inside].mean())
    ends = np.cumsum([len(outline) for outline in outlines], dtype=np.int64)
    return Nuclei(
        np.array(centroids, np.float64).reshape(-1, 2),
        np.array(areas, np.float64),
        np.array(probabilities, np.float64),
        np.concatenate(outlines) if outlines else np.zeros((0, 2)),
        ends,
    )


def _simple(outline: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out corners whose absence moves the outline by less than `TOLERANCE`."""
    import shapely

    simple = shapely.simplify(shapely.Polygon(outline), TOLERANCE)
    return np.asarray(shapely.get_coordinates(simple), np.float64)
