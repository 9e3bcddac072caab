"""In which order the patches of a grid are read as one sequence."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Order = Literal["raster", "snake", "hilbert", "tile-major", "column-major", "cross"]
"""
- ``raster``: row by row, each from the left;
- ``snake``: row by row, every other one from the right (boustrophedon), so that neighbours in the
  sequence are neighbours in the image;
- ``hilbert``: along the Hilbert curve of the enclosing power of two, which keeps a stretch of the
  sequence compact in both directions;
- ``tile-major``: square by square, raster inside and across;
- ``column-major``: column by column, each from the top;
- ``cross``: rows and columns, both ways each, by a model of cross blocks, which goes over the
  columns by itself; the sequence is in raster order.
"""

ORDERS: tuple[Order, ...] = get_args(Order)


def order_index(
    index: NDArray[np.integer], shape: tuple[int, int], order: Order, *, tile: int = 16
) -> NDArray[np.intp]:
    """Return the permutation that brings patches in order.

    Parameters
    ----------
    index
        Row and column of each patch, shape (n, 2), in any order.
    shape
        Rows and columns of the grid.
    tile
        Side of the squares of ``tile-major``, in patches.

    Returns
    -------
    permutation
        Shape (n,); ``index[permutation]`` is in order.

    Raises
    ------
    ValueError
        If there is no such order.

    Examples
    --------
    >>> index = np.argwhere(np.ones((2, 2)))
    >>> index[order_index(index, (2, 2), "snake")].tolist()
    [[0, 0], [0, 1], [1, 1], [1, 0]]
    """
    rows, columns = shape
    row, column = index[:, 0].astype(np.int64), index[:, 1].astype(np.int64)
    match order:
        case "raster" | "cross":
            key = row * columns + column
        case "snake":
            key = row * columns + np.where(row % 2 == 0, column, columns - 1 - column)
        case "hilbert":
            key = _hilbert(row, column, max(rows, columns))
        case "tile-major":
            across = -(-columns // tile)
            square = (row // tile) * across + column // tile
            key = (square * tile + row % tile) * tile + column % tile
        case "column-major":
            key = column * rows + row
        case _:
            raise ValueError(f"no order {order!r}; there are {', '.join(ORDERS)}")
    return np.argsort(key, kind="stable")


def _hilbert(row: NDArray[np.int64], column: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """Return the distance along the curve, from the top left to the top right.

    One quadrant per bit, from the coarsest: its rank joins the distance, and the coordinates inside
    are turned so that the next bit sees the curve upright (Warren, Hacker's Delight, 16-2).
    """
    y, x = row, column
    distance = np.zeros_like(y)
    for bit in reversed(range(max(1, (side - 1).bit_length()))):
        low, right = (y >> bit) & 1, (x >> bit) & 1
        distance = distance << 2 | ((3 * right) ^ low)
        # The upper quadrants hold the curve transposed, the right one mirrored as well.
        flip = -(right & ~low)
        y, x = np.where(low, y, x ^ flip), np.where(low, x, y ^ flip)
    return distance
