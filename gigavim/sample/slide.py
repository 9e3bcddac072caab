"""A sample slide: real tissue texture, a made-up section, and the layout of an Aperio file."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.sample.new_file import new_file
from gigavim.sample.noise import smooth_noise
from gigavim.sample.sections import CELL, Layout, lay_out
from gigavim.sample.stains import EOSIN, HAEMATOXYLIN, textures

TILE = 256
"""Side of a file tile."""

SPACING_UM = 0.499
"""Of a pixel, as a scanner gives it for an objective of 20x."""

GLASS = (243, 242, 244)
"""Red, green and blue of the empty slide."""

TEXTURE = 6
"""Side of the textures, in file tiles; beyond it they repeat."""

SHIFTS = ((0, 0), (2, 3), (3, 5), (5, 1))
"""By how many tiles the textures are moved in each part of the layout, so that no period shows."""

RIM = 24
"""Up to how many pixels the rim of the tissue is frayed."""


@dataclass(frozen=True)
class Painter:
    """Paints any file tile of the slide."""

    layout: Layout
    textures: NDArray[np.float32]
    """See `stains.textures`."""
    grain: NDArray[np.float32]
    """Noise with a standard deviation of 1, shape (side, side)."""

    def tile(self, row: int, column: int) -> NDArray[np.uint8]:
        """Return one file tile as red, green and blue, shape (256, 256, 3)."""
        grain = _cut(self.grain, row, column)
        edge = _enlarged(self.layout.edge, row, column) + RIM / 3 * grain
        # Below one grey level: the noise of the sensor, most of it lost to JPEG.
        light = np.array(GLASS, np.float32)[:, None, None] + 0.7 * grain
        if edge.max() > 0:
            stains = np.clip(edge / 4, 0, 1) * self._stains(row, column)
            vectors = np.array([HAEMATOXYLIN, EOSIN], np.float32)
            light *= np.exp(-np.einsum("sc,syx->cyx", vectors, stains))
        return np.ascontiguousarray(np.rint(light).astype(np.uint8).transpose(1, 2, 0))

    def _stains(self, row: int, column: int) -> NDArray[np.float32]:
        """Return haematoxylin and eosin of a tile, shape (2, 256, 256)."""
        stains = np.zeros((2, TILE, TILE), np.float32)
        amounts = _enlarged(self.layout.stain, row, column)
        parts = _enlarged(self.layout.parts, row, column)
        for part, (down, right) in zip(parts, SHIFTS, strict=True):
            if part.max() > 0.01:
                for amount, texture in zip(amounts, self.textures, strict=True):
                    if amount.max() > 0.01:
                        stains += part * amount * _cut(texture, row + down, column + right)
        return stains


def _enlarged(field: NDArray[np.float32], row: int, column: int) -> NDArray[np.float32]:
    """Interpolate cells of the layout, which has one more on each side, to the pixels of a tile."""
    at = (np.arange(TILE, dtype=np.float32) + 0.5) / CELL + 0.5
    low = at.astype(np.intp)
    share = (at - low).astype(np.float32)
    rows, columns = row * TILE // CELL + low, column * TILE // CELL
    part = field[..., columns : columns + TILE // CELL + 2]
    part = part[..., rows, :] * (1 - share[:, None]) + part[..., rows + 1, :] * share[:, None]
    return np.asarray(part[..., low] * (1 - share) + part[..., low + 1] * share, np.float32)


def _cut(texture: NDArray[np.float32], row: int, column: int) -> NDArray[np.float32]:
    """Cut a file tile from a texture that repeats."""
    count = texture.shape[-1] // TILE
    y, x = row % count * TILE, column % count * TILE
    return texture[..., y : y + TILE, x : x + TILE]


def make_slide(path: Path, *, tiles: tuple[int, int] = (32, 40)) -> None:
    """Write a slide of 10,240 x 8,192 pixels that OpenSlide opens.

    Tissue is painted with textures from a real photograph, see `textures`; where it lies is made
    up.
    The same file comes out each time.

    Parameters
    ----------
    tiles
        Rows and columns of 256 pixels; fewer make a smaller slide.

    Raises
    ------
    StoreError
        If the file is there already or cannot be written.
    """
    import tifffile

    with new_file(path) as unfinished:
        painter = _painter(tiles)
        height, width = tiles[0] * TILE, tiles[1] * TILE
        quarter = np.empty((height // 4, width // 4, 3), np.uint8)
        layout: dict[str, Any] = {
            "photometric": "rgb",
            "compression": "jpeg",
            "compressionargs": {"level": 80},
            "metadata": None,
        }
        tiled = layout | {"tile": (TILE, TILE)}
        with tifffile.TiffWriter(unfinished, bigtiff=False) as file:
            file.write(
                _painted(painter, tiles, quarter),
                shape=(height, width, 3),
                dtype=np.uint8,
                description=_description(width, height),
                **tiled,
            )
            sixteenth = _shrunk(quarter)
            file.write(_shrunk(sixteenth), **layout, rowsperstrip=TILE)
            file.write(quarter, **tiled, subfiletype=1)
            file.write(sixteenth, **tiled, subfiletype=1)


def _painter(tiles: tuple[int, int]) -> Painter:
    rng = np.random.default_rng(20)
    side = min(TEXTURE, *tiles) * TILE
    return Painter(
        lay_out(tiles[0] * TILE // CELL, tiles[1] * TILE // CELL, rng),
        textures(side, rng),
        smooth_noise((side, side), RIM, rng, slope=1.2),
    )


def _painted(
    painter: Painter, tiles: tuple[int, int], quarter: NDArray[np.uint8]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the file tiles, one row of them painted ahead, and fill in the next level meanwhile."""

    def paint(row: int, column: int) -> NDArray[np.uint8]:
        tile = painter.tile(row, column)
        y, x = row * TILE // 4, column * TILE // 4
        quarter[y : y + TILE // 4, x : x + TILE // 4] = _shrunk(tile)
        return tile

    with ThreadPoolExecutor() as pool:
        for row in range(tiles[0]):
            yield from pool.map(paint, [row] * tiles[1], range(tiles[1]))


def _shrunk(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average squares of 4 x 4 pixels."""
    height, width = image.shape[0] // 4, image.shape[1] // 4
    total = np.zeros((height, width, 3), np.uint16)
    for y, x in np.ndindex(4, 4):
        total += image[y : height * 4 : 4, x : width * 4 : 4]
    return ((total + 8) // 16).astype(np.uint8)


def _description(width: int, height: int) -> str:
    """Say what a scanner of Aperio would: OpenSlide and others look for these words."""
    return (
        f"Aperio Image Library (GigaVim sample)\r\n{width}x{height} [0,0 {width}x{height}] "
        f"({TILE}x{TILE}) JPEG/RGB Q=80|AppMag = 20|MPP = {SPACING_UM:.4f}|Title = GigaVim sample"
    )
