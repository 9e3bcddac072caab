"""Where a slide is out of focus.

In a sharp picture of tissue there is as much to see between one and two micrometres as between two
and four. Blur takes the finer part first. The ratio of both depends little on the tissue, and not
on the stain, the magnification or how much glass there is, since it is always measured at the same
spacing and only where there is structure.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gigavim.geometry import Grid, Window
from gigavim.masks import Mask, covered
from gigavim.sources.plane import Plane
from gigavim.sources.source import Source

SPACING_UM = 1.0
"""Focus is judged at this spacing."""
COARSEST_UM = 0.75
"""Of level 0: a slide that is coarser is less sharp at `SPACING_UM` by its scanning already."""
CELL = 128
"""Side of the squares that are judged, in µm, if they are not too many."""
MOST_CELLS = 4096
"""On a large slide the squares are larger: a second or so tells of any."""
SAMPLE = 64
"""Side of what is read in the middle of each, in µm."""
LEAST_SHARPNESS = 0.70
"""Below it a cell is out of focus.

Measured on CMU-1-Small-Region, blurred by a Gaussian: sharp tissue has 1.04 to 2.06; a sigma of
1 µm leaves 0.59 to 0.84, 1.5 µm leaves 0.48 to 0.63, 2 µm 0.42 to 0.51. Of tiles of colorectal H&E
from three other sources, all but a few of fat lie above 0.96; sharp immunohistochemistry begins at
0.71.
"""
LEAST_CONTRAST = 5.0
"""Standard deviation in grey levels: with less there is nothing to be sharp."""

_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def sharpness(grey: NDArray[np.float32]) -> float:
    """Return how much there is to see at one pixel, to how much at two; NaN without structure.

    Parameters
    ----------
    grey
        0 to 255, at `SPACING_UM`, shape (height, width).
    """
    from scipy import ndimage

    if grey.std() < LEAST_CONTRAST:
        return float("nan")
    once, twice = (ndimage.gaussian_filter(grey, sigma) for sigma in (1, 2))
    # A third of a grey level is what rounding alone leaves.
    return float((grey - once).std() / ((once - twice).std() + 0.3))


def out_of_focus(source: Source, grid: Grid, tissue: Mask) -> NDArray[np.bool_] | None:
    """Tell which patches lie in tissue that is out of focus.

    Returns
    -------
    blurred
        Shape (rows, columns); None where the image is too coarse to tell.

    Raises
    ------
    SourceError
        If the image cannot be read.
    """
    from scipy import ndimage

    spacing, finest = source.spacing, source.levels[0]
    if spacing is None or max(spacing.y, spacing.x) > COARSEST_UM:
        return None
    plane = Plane.at(source, SPACING_UM)
    area = finest.height / plane.ratio_y * finest.width / plane.ratio_x
    side = max(CELL, math.ceil(math.sqrt(area / MOST_CELLS)))
    cells = Grid.over(
        finest.height, finest.width, patch=side, ratio_y=plane.ratio_y, ratio_x=plane.ratio_x
    )
    sharp = np.full(cells.shape, np.nan)
    margin = (side - SAMPLE) // 2
    for row, column in np.argwhere(covered(tissue, cells)):
        cell = cells.window(row, column)
        pixels = plane.read(Window(cell.y + margin, cell.x + margin, SAMPLE, SAMPLE))
        if pixels.valid.all():
            grey = pixels.values[..., :3].astype(np.float32) @ _GREY
            sharp[row, column] = sharpness(grey)
    if np.isnan(sharp).all():
        return np.zeros(grid.shape, np.bool_)
    # The rim of tissue, and what has no structure, is as sharp as what is nearest.
    near = ndimage.distance_transform_edt(
        np.isnan(sharp), return_distances=False, return_indices=True
    )
    return _spread(sharp[tuple(near)] < LEAST_SHARPNESS, cells, grid)


def _spread(values: NDArray[np.bool_], cells: Grid, grid: Grid) -> NDArray[np.bool_]:
    """Give each patch what the cell under its centre has."""
    rows, columns = (
        np.minimum((corner + (np.arange(count) + 0.5) * side) // cell, last - 1).astype(int)
        for corner, count, side, cell, last in (
            (grid.corner_y, grid.rows, grid.cell_y, cells.cell_y, cells.rows),
            (grid.corner_x, grid.columns, grid.cell_x, cells.cell_x, cells.columns),
        )
    )
    return values[np.ix_(rows, columns)]
