"""Where a place is another on a second date, told from the features of both, without training.

The season and the light change all features of a scene alike, so those of each date are
standardised by themselves first: what is left is how a cell differs from the rest of its scene. The
score of a cell is the cosine distance of the two. A change of the whole scene therefore shows
nowhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gigavim.head import Rows

ROWS_AT_ONCE = 32_768
"""Features that are held together: those of one file of a store."""


class Standard(NamedTuple):
    """What features are standardised by."""

    mean: NDArray[np.float64]
    """Shape (D,)."""
    std: NDArray[np.float64]
    """Shape (D,); 1 for what is constant."""


def standard_of(features: Rows, rows: NDArray[np.integer]) -> Standard:
    """Return mean and standard deviation of some features, read in parts."""
    width = features.shape[1]
    total, squares = np.zeros(width), np.zeros(width)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = take(features, rows[start : start + ROWS_AT_ONCE])
        total += part.sum(0)
        squares += np.square(part).sum(0)
    mean = total / len(rows)
    std = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
    # Rounding must not blow a constant up.
    return Standard(mean, np.where(std > 1e-6, std, 1.0))


def differences(
    before: Rows, after: Rows, rows: NDArray[np.integer], standards: tuple[Standard, Standard]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compare some cells.

    Parameters
    ----------
    rows
        Where each cell is among the features of the two dates, shape (m, 2).

    Returns
    -------
    scores
        0 where nothing changed, to 2; shape (m,).
    difference
        Of the standardised features, after less before, shape (m, D).
    """
    a, b = (
        (take(features, rows[:, number]) - standard.mean) / standard.std
        for number, (features, standard) in enumerate(zip((before, after), standards, strict=True))
    )
    # As half the squared distance of unit vectors, so that what is the same is exactly 0.
    scores = np.square(_unit(a) - _unit(b)).sum(1) / 2
    return scores.astype(np.float32), (b - a).astype(np.float32)


def threshold_of(scores: NDArray[np.floating]) -> float:
    """Return from which score on a cell has changed.

    By Yen, Chang and Chang 1995, "A new criterion for automatic multilevel thresholding", which
    looks for the tail of the scores. Otsu's method looks for two groups of them, and finds them
    also where nothing changed: docs/time.md has what was measured.
    """
    from skimage.filters import threshold_yen

    if not len(scores) or scores.min() == scores.max():
        return float(scores.max(initial=0))
    return float(threshold_yen(scores))  # type: ignore[no-untyped-call]


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows of length 1; those of length 0 stay so."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def take(features: Rows, rows: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return some features in the order asked for, reading each file of a store once."""
    taken = np.empty((len(rows), features.shape[1]))
    number = rows // ROWS_AT_ONCE
    for each in np.unique(number):
        here = number == each
        own = rows[here] - each * ROWS_AT_ONCE
        start = int(each) * ROWS_AT_ONCE + int(own.min())
        part = np.asarray(features[start : start + int(own.max() - own.min()) + 1], np.float64)
        taken[here] = part[own - own.min()]
    return taken
