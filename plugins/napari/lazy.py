"""Arrays that napari slices without waiting: what is still to be read is shown coarser till then.

napari's own asynchronous slicing would not do. It is a setting of the user's whole napari, off by
default; in 0.9.2 it reads the coarsest level of a pyramid on the thread of the window all the same;
it reads a view as a whole, on one thread, and cannot stop, so that views that were left are waited
for; and meanwhile nothing is seen. Here a view is cut in tiles, which threads of their own read,
the latest view first, and which all pyramids keep in one cache.

Whoever shows a pyramid in a window says so by `Pyramid.waits`, and looks for what has come. Else,
outside of the main thread, or in `waiting`, indexing reads and gives what is in the file.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gigavim.geometry import Window
from gigavim.plugins.napari.tiles import CACHE, READERS, Key

ALIGNED = 256
"""Pixels to a side of the squares that napari is told of: a view grows by whole ones."""

_WAITING = ContextVar("waiting", default=False)


class ReadTile(Protocol):
    """Reads a window of a level, which may reach beyond the image, in any thread."""

    def __call__(self, level: int, window: Window, /) -> tuple[NDArray[Any], Sequence[str]]:
        """Return the pixels, and in words what could not be read."""
        ...


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Have all that is indexed meanwhile read at once, however long that takes."""
    token = _WAITING.set(True)
    try:
        yield
    finally:
        _WAITING.reset(token)


@dataclass(frozen=True, eq=False)
class Level:
    """One level of a pyramid: as much of an array as napari and NumPy ask for."""

    pyramid: Pyramid
    number: int
    shape: tuple[int, ...]
    """(rows, columns), or (rows, columns, colours)."""
    side: int
    """Of its tiles, in pixels."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its pixels."""
        return self.pyramid.dtype

    @property
    def ndim(self) -> int:
        """2, or 3 with colours."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return int(np.prod(self.shape))

    @property
    def chunks(self) -> tuple[int, ...]:
        """What napari enlarges a view to, so that not every step of it is a new one."""
        return (ALIGNED, ALIGNED, *self.shape[2:])

    def __getitem__(self, key: Any) -> NDArray[Any]:
        index = _whole_index(key, self.ndim)
        rows, row = _span(index[0], self.shape[0])
        columns, column = _span(index[1], self.shape[1])
        part = self.pyramid.read(self.number, rows, columns)
        return np.asarray(part[(row, column, *index[2:])])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        # napari takes the coarsest level once and for all: it is filled in its place.
        if self.number == len(self.pyramid.levels) - 1:
            return np.array(self.pyramid.coarsest(), dtype, copy=copy or None)
        with waiting():
            return np.asarray(self[...], dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Level:
        return self


class Pyramid:
    """Levels of which each has half of the rows and columns of the one before.

    All cover the same rectangle, so that napari, which derives scales from sizes, lines them up.

    Parameters
    ----------
    read
        Reads a tile.
    shape
        Of the coarsest level; the others are larger by powers of two.
    sides
        Of the tiles of each level, finest first: powers of two, of which none covers less of the
        image than the one before.
    blank
        What there is to see where nothing has been read.
    """

    def __init__(
        self,
        read: ReadTile,
        shape: tuple[int, ...],
        sides: Sequence[int],
        dtype: DTypeLike,
        blank: float = 0,
    ) -> None:
        self.dtype = np.dtype(dtype)
        top = len(sides) - 1
        self.levels = tuple(
            Level(self, number, (shape[0] << up, shape[1] << up, *shape[2:]), side)
            for number, (up, side) in enumerate(zip(range(top, -1, -1), sides, strict=True))
        )
        self.waits = True
        """Whether indexing in the main thread waits for what is still to be read."""
        self.listeners: list[Callable[[], None]] = []
        """Called in the main thread when there is something to wait for, and it does not."""
        self._read = read
        self._coarsest = np.full(shape, blank, self.dtype)
        self._there: set[Key] = set()
        self.arrivals = 0
        """Another number whenever a tile has come."""
        self.faults: list[str] = []
        """What could not be read, in words."""
        self._counter = itertools.count(1)
        weakref.finalize(self, CACHE.drop, id(self))

    @property
    def loading(self) -> bool:
        """Whether anything is still being read."""
        return READERS.owe(self)

    @property
    def coarse_tiles(self) -> int:
        """How many tiles of the coarsest level are there."""
        return len(self._there)

    def coarsest(self) -> NDArray[Any]:
        """Return the coarsest level, always the same array, which may still be filling."""
        rows, columns = self._coarsest.shape[:2]
        self._collect(len(self.levels) - 1, (0, rows), (0, columns))
        return self._coarsest

    def read(self, level: int, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[Any]:
        """Return a part of a level: in a window, what there is of it at once."""
        tiles = self._collect(level, rows, columns)
        if level == len(self.levels) - 1:
            return self._coarsest[slice(*rows), slice(*columns)]
        shape, side = self.levels[level].shape, self.levels[level].side
        part = np.empty((rows[1] - rows[0], columns[1] - columns[0], *shape[2:]), self.dtype)
        for key, tile in tiles.items():
            y, x = key[1] * side, key[2] * side
            shown = self._stand_in(key) if tile is None else tile
            top, left = max(y, rows[0]), max(x, columns[0])
            bottom, right = min(y + side, rows[1]), min(x + side, columns[1])
            there = np.s_[top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]]
            part[there] = shown[top - y : bottom - y, left - x : right - x]
        return part

    def load(self, key: Key) -> NDArray[Any]:
        """Read a tile, and keep it."""
        level, row, column = key
        side, (height, width) = self.levels[level].side, self.levels[level].shape[:2]
        y, x = row * side, column * side
        tile, faults = self._read(level, Window(y, x, side, side))
        self.faults.extend(faults)
        if level == len(self.levels) - 1:
            self._coarsest[y : y + side, x : x + side] = tile[: height - y, : width - x]
            self._there.add(key)
        else:
            CACHE.put(id(self), key, tile)
        self.arrivals = next(self._counter)
        return tile

    def _collect(
        self, level: int, rows: tuple[int, int], columns: tuple[int, int]
    ) -> dict[Key, NDArray[Any] | None]:
        """Return the tiles under a part, None for those that are still to be read."""
        side, is_coarsest = self.levels[level].side, level == len(self.levels) - 1
        tiles: dict[Key, NDArray[Any] | None] = {
            key: self._coarsest if key in self._there else CACHE.get(id(self), key)
            for row in range(rows[0] // side, -(-rows[1] // side))
            for column in range(columns[0] // side, -(-columns[1] // side))
            for key in [(level, row, column)]
        }
        missing = [key for key, tile in tiles.items() if tile is None]
        in_window = threading.current_thread() is threading.main_thread()
        if self.waits or not in_window or _WAITING.get():
            tiles |= {key: self.load(key) for key in missing}
        elif missing:
            READERS.want(self, missing, lasting=is_coarsest)
            for listen in self.listeners:
                listen()
        return tiles

    def _stand_in(self, key: Key) -> NDArray[Any]:
        """Return a tile made of the finest coarser one that is there."""
        number, row, column = key
        side = self.levels[number].side
        for coarser in self.levels[number + 1 : -1]:
            factor = 1 << coarser.number - number
            y, x = row * side // factor, column * side // factor
            over = coarser.number, y // coarser.side, x // coarser.side
            found = CACHE.get(id(self), over)
            if found is not None:
                return _enlarged(found, y % coarser.side, x % coarser.side, side, factor)
        factor = 1 << len(self.levels) - 1 - number
        y, x = row * side // factor, column * side // factor
        return _enlarged(self._coarsest, y, x, side, factor)


def _enlarged(tile: NDArray[Any], y: int, x: int, side: int, factor: int) -> NDArray[Any]:
    """Return so many pixels to a side from a place in a coarser tile."""
    part = tile[y : y + side // factor, x : x + side // factor]
    return part.repeat(factor, 0).repeat(factor, 1)


def _whole_index(key: Any, ndim: int) -> tuple[Any, ...]:
    """Return an index with a part for each axis."""
    index = key if isinstance(key, tuple) else (key,)
    at = next((i for i, part in enumerate(index) if part is Ellipsis), len(index))
    rest = index[at + 1 :]
    return (*index[:at], *[slice(None)] * (ndim - at - len(rest)), *rest)


def _span(part: Any, size: int) -> tuple[tuple[int, int], Any]:
    """Return first and one past the last index, and what is to be taken of these."""
    if not isinstance(part, slice):
        at = range(size)[part]
        return (at, at + 1), 0
    picked = range(size)[part]
    if not picked:
        return (0, 0), slice(None)
    return (min(picked), max(picked) + 1), slice(None, None, picked.step)
