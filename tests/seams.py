"""Whether the borders of blocks can be found in a map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu


def seams(features: NDArray[np.floating], side: int) -> tuple[float, float]:
    """Compare neighbours across the borders of blocks with neighbours inside.

    A line of the grid between two columns, or two rows, gives one number, the mean log distance of
    the features on its two sides, less that of the lines next to it: the distances along one line
    are no independent witnesses, and land changes slowly. The numbers of the lines that are borders
    are held against those of all other lines by the test of Mann and Whitney (1947), one-sided.

    Parameters
    ----------
    features
        Shape (rows, columns, D); NaN where there is nothing.
    side
        Cells of a block.

    Returns
    -------
    ratio
        By how much features differ more across a border than beside it.
    p
        How likely lines that are no different would look so different.
    """
    borders, others = [], []
    for turned in (features, features.swapaxes(0, 1)):
        away = np.linalg.norm(np.diff(turned, axis=1), axis=2)
        away = np.nanmean(np.log(np.maximum(away, 1e-6)), axis=0)
        here = away[1:-1] - (away[:-2] + away[2:]) / 2
        is_border = np.arange(2, len(here) + 2) % side == 0
        borders.append(here[is_border])
        others.append(here[~is_border])
    found, beside = np.concatenate(borders), np.concatenate(others)
    p = mannwhitneyu(found, beside, alternative="greater").pvalue
    return float(np.exp(found.mean() - beside.mean())), float(p)
