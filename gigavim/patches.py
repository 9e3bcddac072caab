"""From a plane's pixels to normalised patches, a block of the grid at a time.

Pixels are read in blocks, since a row of patches across a slide would decode each file tile many
times over. A block's patches need not be neighbours in the sequence: `embed` treats each alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.geometry import Block, Grid, Window
from gigavim.sources import Pixels, Plane, ReadError
from gigavim.stain_normalisation import StainTransform

LEVEL_SIDE = 4096
"""At most this many level pixels to a side are read at once: 50 MB of RGB."""
TARGET_SIDE = 1024
"""At most this many target pixels to a side: 12 MB of normalised RGB."""


@dataclass(frozen=True, slots=True)
class PatchBlock:
    """Patches that are read at once, and where they belong."""

    number: int
    block: Block
    cells: NDArray[np.int32]
    """Row and column of each patch inside the block, shape (m, 2)."""

    @property
    def index(self) -> NDArray[np.int32]:
        """Row and column of each patch on the grid, shape (m, 2)."""
        return self.cells + np.array([self.block.row, self.block.column], np.int32)


@dataclass(frozen=True, slots=True)
class Patches:
    """The patches of a `PatchBlock`, ready for the encoder."""

    number: int
    pixels: NDArray[np.float32]
    """Normalised, 0 where a pixel is not valid; shape (m, patch, patch, band)."""
    valid: NDArray[np.bool_]
    """Whether at least half of a patch could be read, shape (m,)."""
    errors: tuple[ReadError, ...]
    megapixels: float
    """Level pixels read, in millions."""
    read_s: float
    """Seconds spent waiting for bytes."""
    decode_s: float
    """Seconds spent decoding, resampling and normalising."""


@dataclass(frozen=True)
class PatchReader:
    """Reads, cuts and normalises; a task on Dask."""

    plane: Plane
    grid: Grid
    slots: tuple[int, ...]
    """Where each band of the source goes among the model's."""
    bands: int
    """How many bands the model takes; those that the source lacks stay 0, their mean."""
    scale: float
    """What a stored value is multiplied with before it is normalised."""
    mean: tuple[float, ...]
    """Per band of the source."""
    std: tuple[float, ...]
    """Per band of the source."""
    stain: StainTransform | None = None
    """Gives a slide the stain of another, before anything else sees its pixels."""
    top: float | None = None
    """What larger values are taken for, after `scale`."""

    def __call__(self, patch_block: PatchBlock) -> Patches:
        """Read one block."""
        start = time.perf_counter()
        block, cells = patch_block.block, patch_block.cells
        window = self.grid.window(block.row, block.column, block.rows, block.columns)
        pixels = self._read(window)
        patch, stride = self.grid.patch, self.grid.stride
        values = np.lib.stride_tricks.sliding_window_view(pixels.values, (patch, patch), (0, 1))
        # (rows, columns, band, patch, patch), then the patches asked for with the band last
        values = values[::stride, ::stride][cells[:, 0], cells[:, 1]].transpose(0, 2, 3, 1)
        normalised = np.zeros((*values.shape[:-1], self.bands), np.float32)
        normalised[..., list(self.slots)] = self._normalised(values)
        share = np.ones(len(cells), np.float32)
        if not pixels.valid.all():
            there = np.lib.stride_tricks.sliding_window_view(pixels.valid, (patch, patch))
            there = there[::stride, ::stride][cells[:, 0], cells[:, 1]]
            normalised *= there[..., None]
            share = there.mean((1, 2), dtype=np.float32)
        level_window = self.plane.level_window(window)
        seconds = time.perf_counter() - start
        return Patches(
            patch_block.number,
            normalised,
            share >= 0.5,
            pixels.errors,
            level_window.height * level_window.width / 1e6,
            pixels.read_s,
            seconds - pixels.read_s,
        )

    def pixels(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read a window of target pixels that is not cut in patches.

        Returns
        -------
        pixels
            Normalised, 0 where a pixel is not valid; shape (height, width, band).
        valid
            Shape (height, width).
        """
        read = self._read(window)
        normalised = np.zeros((*read.valid.shape, self.bands), np.float32)
        normalised[..., list(self.slots)] = self._normalised(read.values)
        normalised *= read.valid[..., None]
        return normalised, read.valid

    def _normalised(self, values: NDArray[Any]) -> NDArray[np.float32]:
        mean, std = (np.asarray(per_band, np.float32) for per_band in (self.mean, self.std))
        scaled: NDArray[np.float32] = values * np.float32(self.scale)
        if self.top is not None:
            np.minimum(scaled, np.float32(self.top), out=scaled)
        return (scaled - mean) / std

    def _read(self, window: Window) -> Pixels:
        pixels = self.plane.read(window)
        if self.stain is None:
            return pixels
        return dataclasses.replace(pixels, values=self.stain(pixels.values))


def block_side(plane: Plane, grid: Grid, multiple: int = 1) -> int:
    """Return how many patches to a side a block has, a multiple of ``multiple``."""
    level = plane.source.levels[plane.level]
    ratio = max(plane.ratio_y / level.downsample_y, plane.ratio_x / level.downsample_x)
    side = min(TARGET_SIDE, LEVEL_SIDE / ratio) / grid.stride
    return max(1, int(side) // multiple) * multiple


def foreground_blocks(grid: Grid, foreground: NDArray[np.bool_], side: int) -> Iterator[PatchBlock]:
    """Cut the foreground of a grid in blocks of at most ``side`` x ``side`` patches."""
    number = 0
    for block in grid.blocks(side, side):
        cells = np.argwhere(foreground[block.slices]).astype(np.int32)
        if len(cells):
            yield PatchBlock(number, block, cells)
            number += 1


def tile_blocks(
    grid: Grid, foreground: NDArray[np.bool_], side: int, tile: int
) -> Iterator[PatchBlock]:
    """Cut a grid in blocks of whole tiles, those with any foreground, with all their patches.

    Parameters
    ----------
    tile
        Patches to a side of a tile.

    Yields
    ------
    block
        Its cells are tile after tile, ``tile * tile`` to each, row-major inside. Tiles at the rim
        reach beyond the grid; their patches there come back as not valid.
    """
    number = 0
    inside = np.indices((tile, tile), np.int32).reshape(2, -1).T
    for block in grid.blocks(side, side):
        rows, columns = -(-block.rows // tile), -(-block.columns // tile)
        padded = np.zeros((rows * tile, columns * tile), np.bool_)
        padded[: block.rows, : block.columns] = foreground[block.slices]
        corners = tile * np.argwhere(padded.reshape(rows, tile, columns, tile).any((1, 3)))
        if len(corners):
            cells = (corners[:, None, :] + inside).reshape(-1, 2).astype(np.int32)
            whole = Block(block.row, block.column, rows * tile, columns * tile)
            yield PatchBlock(number, whole, cells)
            number += 1
