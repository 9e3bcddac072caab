"""Images and maps as pyramids for `lazy`, down to what fits a screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray

from gigavim.errors import SourceError
from gigavim.geometry import Window
from gigavim.ngff import STEPS
from gigavim.plugins.napari.lazy import Pyramid
from gigavim.sources import Pixels, Plane, Source
from gigavim.views.rgb import Stretch

SIDE = 512
"""Of a tile, in pixels of its level."""

COARSEST = 1024
"""Longest side of the coarsest level."""

MOST_LEVELS = 10

DRAWN = 2048
"""Pixels to a side that a tile is drawn from at most: what takes long comes in small pieces."""

NEARLY = 1.01
"""A level of the file by so much too coarse is taken: writers round."""


def rgba_pyramid(source: Source, stretch: Stretch) -> Pyramid:
    """Show an image in colours, transparent where it has none."""

    def paint(pixels: Pixels) -> NDArray[np.uint8]:
        return np.dstack([stretch.apply(pixels), pixels.valid.astype(np.uint8) * 255])

    return _source_pyramid(source, paint, (4,), np.uint8)


def band_pyramid(source: Source) -> Pyramid:
    """Show an image of one band as numbers: uint8 as it is, others as floats, NaN for none."""
    dtype = np.uint8 if source.dtype == np.uint8 else np.float32

    def paint(pixels: Pixels) -> NDArray[Any]:
        values = pixels.values[..., 0].astype(dtype)
        values[~pixels.valid] = 0 if dtype == np.uint8 else np.nan
        return values

    return _source_pyramid(source, paint, (), dtype)


def label_pyramid(arrays: Sequence[zarr.Array[Any]]) -> Pyramid:
    """Show a class map of a store."""
    return _map_pyramid(arrays, np.s_[...], np.asarray, np.uint8)


def value_pyramid(arrays: Sequence[zarr.Array[Any]], channel: int) -> Pyramid:
    """Show one channel of a map of a store; probabilities as such, NaN where there are none."""
    is_coded = arrays[0].dtype == np.uint8

    def decode(stored: NDArray[Any]) -> NDArray[np.float32]:
        values = stored.astype(np.float32)
        return np.where(values > 0, (values - 1) / STEPS, np.nan) if is_coded else values

    return _map_pyramid(arrays, channel, decode, np.float32)


@dataclass(frozen=True)
class _SourceTiles:
    """Reads tiles of an image, at spacings that its file may not have."""

    planes: tuple[Plane, ...]
    paint: Callable[[Pixels], NDArray[Any]]

    def __call__(self, level: int, window: Window) -> tuple[NDArray[Any], Sequence[str]]:
        plane = self.planes[level]
        source = plane.source
        try:
            pixels = plane.read(window)
        except SourceError as error:
            shape = window.height, window.width
            nothing = np.zeros((*shape, len(source.bands)), source.dtype)
            return self.paint(Pixels(nothing, np.zeros(shape, np.bool_))), [str(error)]
        faults = [
            f"{source.path}: a part cannot be decoded and is left out ({error.message}); "
            "copy the file again"
            for error in pixels.errors
        ]
        return self.paint(pixels), faults


@dataclass(frozen=True)
class _MapTiles:
    """Reads tiles of a map in a store."""

    arrays: Sequence[zarr.Array[Any]]
    channel: Any
    decode: Callable[[NDArray[Any]], NDArray[Any]]

    def __call__(self, level: int, window: Window) -> tuple[NDArray[Any], Sequence[str]]:
        array = self.arrays[level]
        rows = slice(window.y, window.y + window.height)
        columns = slice(window.x, window.x + window.width)
        index = (rows, columns) if array.ndim == 2 else (self.channel, rows, columns)
        tile = np.zeros((window.height, window.width), array.dtype)
        if array.dtype.kind == "f":
            tile[:] = np.nan
        stored = np.asarray(array[index])
        tile[: stored.shape[0], : stored.shape[1]] = stored
        return self.decode(tile), ()


def _source_pyramid(
    source: Source,
    paint: Callable[[Pixels], NDArray[Any]],
    colours: tuple[int, ...],
    dtype: DTypeLike,
) -> Pyramid:
    """Halve an image until it fits a screen, from the level of the file that is finer by least."""
    finest = source.levels[0]
    longest = max(finest.height, finest.width)
    count = min(MOST_LEVELS, 1 + max(0, math.ceil(math.log2(longest / COARSEST))))
    planes, sides = [], []
    for ratio in (float(1 << number) for number in range(count)):
        level, drawn = max(
            (index, ratio / max(known.downsample_y, known.downsample_x))
            for index, known in enumerate(source.levels)
            if max(known.downsample_y, known.downsample_x) <= ratio * NEARLY
        )
        planes.append(Plane(source, level, ratio, ratio))
        sides.append(min(SIDE, DRAWN >> max(0, math.ceil(math.log2(drawn / NEARLY)))))
    factor = 1 << count - 1
    shape = -(-finest.height // factor), -(-finest.width // factor)
    blank = np.nan if np.dtype(dtype).kind == "f" else 0
    return Pyramid(_SourceTiles(tuple(planes), paint), (*shape, *colours), sides, dtype, blank)


def _map_pyramid(
    arrays: Sequence[zarr.Array[Any]],
    channel: Any,
    decode: Callable[[NDArray[Any]], NDArray[Any]],
    dtype: DTypeLike,
) -> Pyramid:
    """Show a map as the store has halved it, its levels filled up to cover the same."""
    rows, columns = arrays[-1].shape[-2:]
    blank = np.nan if np.dtype(dtype).kind == "f" else 0
    tiles = _MapTiles(arrays, channel, decode)
    return Pyramid(tiles, (rows, columns), [SIDE] * len(arrays), dtype, blank)
