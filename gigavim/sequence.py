"""Which patches are read, in what order, and back onto the grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.geometry import Grid
from gigavim.orders import Order, order_index


@dataclass(frozen=True, eq=False)
class PatchSequence:
    """The foreground patches of a grid as one sequence; a position counts along it from 0."""

    grid: Grid
    """All patches, foreground or not."""
    order: Order
    """How the sequence walks over the grid."""
    index: NDArray[np.int32]
    """Row and column of each patch, in sequence order, shape (n, 2)."""

    @classmethod
    def from_foreground(
        cls, grid: Grid, foreground: NDArray[np.bool_], order: Order, *, tile: int = 16
    ) -> PatchSequence:
        """Put the patches of a mask in order.

        Parameters
        ----------
        foreground
            True for each patch to read, shape (rows, columns).
        tile
            Side of the squares of the ``tile-major`` order, in patches.

        Raises
        ------
        ValueError
            If the mask does not have the shape of the grid, or there is no such order.

        Examples
        --------
        >>> foreground = np.array([[True, True], [False, True]])
        >>> PatchSequence.from_foreground(Grid.over(32, 32, patch=16), foreground, "raster").index
        array([[0, 0],
               [0, 1],
               [1, 1]], dtype=int32)
        """
        if foreground.shape != grid.shape:
            raise ValueError(f"a mask of {foreground.shape} for a grid of {grid.shape}")
        row, column = np.divmod(np.flatnonzero(foreground), grid.columns)
        index = np.column_stack([row.astype(np.int32), column.astype(np.int32)])
        if order not in ("raster", "cross"):
            index = index[order_index(index, grid.shape, order, tile=tile)]
        return cls(grid, order, index)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def coords(self) -> NDArray[np.int32]:
        """Level-0 x and y of the top-left corner of each patch, shape (n, 2)."""
        return self.grid.coords(self.index)

    def chunks(self, size: int) -> Iterator[slice]:
        """Cut the sequence in runs of at most ``size`` positions."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def scatter(self, values: NDArray[Any], fill: Any) -> NDArray[Any]:
        """Lay values of the sequence out on the grid.

        Parameters
        ----------
        values
            One for each patch, shape (n, ...).
        fill
            Where no patch was read.

        Returns
        -------
        layout
            Shape (rows, columns, ...), of the dtype of ``values``.
        """
        if len(values) != len(self):
            raise ValueError(f"{len(values)} values for a sequence of {len(self)} patches")
        layout = np.full((*self.grid.shape, *values.shape[1:]), fill, values.dtype)
        layout[self.index[:, 0], self.index[:, 1]] = values
        return layout

    def positions_of(self, index: NDArray[np.integer]) -> NDArray[np.int32]:
        """Find where patches are in the sequence.

        Parameters
        ----------
        index
            Row and column of each patch, shape (k, 2).

        Returns
        -------
        positions
            Shape (k,); -1 for a patch that is beyond the grid or not read.
        """
        row, column = index.T
        inside = (row >= 0) & (row < self.grid.rows) & (column >= 0) & (column < self.grid.columns)
        positions = np.full(len(index), -1, np.int32)
        positions[inside] = self._position[row[inside], column[inside]]
        return positions

    @cached_property
    def _position(self) -> NDArray[np.int32]:
        """The inverse of ``index``: the position of each patch, -1 for those that are not read."""
        return self.scatter(np.arange(len(self), dtype=np.int32), -1)
