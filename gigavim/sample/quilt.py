"""A large texture out of a small picture (Efros & Freeman, Image Quilting, SIGGRAPH 2001)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

TRIES = 16
"""Pieces to choose from at each place; the one that fits best is laid."""


def quilt(
    picture: NDArray[np.float32],
    usable: NDArray[np.bool_],
    side: int,
    *,
    step: int,
    overlap: int,
    turns: Sequence[int],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Lay pieces of a picture over a square, each cut to its neighbours where they differ least.

    Parameters
    ----------
    picture
        Shape (band, height, width).
    usable
        Where pieces may come from, shape (height, width): nine tenths of each lie here.
    step
        From one piece to the next, in pixels; it divides ``side``.
    overlap
        By how many pixels neighbours overlap.
    turns
        By how many right angles pieces may be turned; they may be mirrored as well.

    Returns
    -------
    texture
        Shape (band, side, side); opposite edges meet without a seam.
    """
    piece, count = step + overlap, side // step
    corners = _corners(usable, piece)
    texture = np.zeros((len(picture), side, side), np.float32)
    within = np.arange(piece)
    for row, column in np.ndindex(count, count):
        there = np.ix_(
            range(len(picture)), (row * step + within) % side, (column * step + within) % side
        )
        below = texture[there]
        # Left, top, right and bottom, where something lies already; a turn brings each to the left.
        done = (column > 0, row > 0, column == count - 1, row == count - 1)
        sides = [turn for turn, neighbour in enumerate(done) if neighbour]
        laid = np.zeros((piece, piece), np.float32)
        for turn in sides:
            np.rot90(laid, turn)[:, :overlap] = 1
        best, least = below, np.inf
        for y, x in corners[rng.integers(len(corners), size=TRIES)]:
            tried = np.rot90(picture[:, y : y + piece, x : x + piece], rng.choice(turns), (1, 2))
            tried = tried[:, :, :: rng.choice((-1, 1))]
            misfit = float((_misfit(tried, below) * laid).sum())
            if misfit < least:
                best, least = tried, misfit
        new = np.ones((piece, piece), np.bool_)
        misfits = _misfit(best, below)
        for turn in sides:
            np.rot90(new, turn)[:, :overlap] &= _beyond_cut(np.rot90(misfits, turn)[:, :overlap])
        texture[there] = np.where(new, best, below)
    return texture


def _misfit(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return by how much each pixel differs, squared."""
    return np.asarray(((one - other) ** 2).sum(axis=0), np.float32)


def _corners(usable: NDArray[np.bool_], piece: int) -> NDArray[np.intp]:
    """Return the top-left corners of all pieces that may be used, shape (n, 2)."""
    total = np.pad(usable, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    area = total[piece:, piece:] - total[:-piece, piece:]
    area += total[:-piece, :-piece] - total[piece:, :-piece]
    return np.argwhere(area >= 0.9 * piece**2)


def _beyond_cut(misfit: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return what lies right of the path from top to bottom that crosses the least misfit."""
    cost = misfit.copy()
    for above, here in pairwise(cost):
        wide = np.pad(above, 1, constant_values=np.inf)
        here += np.minimum(np.minimum(wide[:-2], wide[1:-1]), wide[2:])
    cut = np.empty(len(cost), np.intp)
    cut[-1] = cost[-1].argmin()
    for row in reversed(range(len(cost) - 1)):
        low = max(0, cut[row + 1] - 1)
        cut[row] = low + cost[row, low : cut[row + 1] + 2].argmin()
    return np.arange(misfit.shape[1]) >= cut[:, None]
