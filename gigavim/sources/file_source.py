"""What all readers share: clipping to the image, handles per thread, and pickling as a path."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from gigavim.errors import SourceError
from gigavim.geometry import Level, Spacing, Window, level_downsample
from gigavim.sources.source import Band, Pixels, ReadError

Handle = TypeVar("Handle")

Part = tuple[NDArray[Any], NDArray[np.bool_]]
"""Values and validity, as `Pixels` has them."""

LYING = (
    ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError,
    ValueError, struct.error, zlib.error,
)  # fmt: skip
"""What libraries raise that take a file at its word, where the file is damaged."""

LONGEST_SIDE = 1 << 24
"""Pixels: the whole Earth at 3 m. A damaged header says more, which would take years to read."""

MOST_BANDS = 4096
"""Read at once: a hyperspectral sensor has a tenth, and a damaged header more."""

LARGEST_TILE = 1 << 30
"""Bytes that one decoded tile, strip or chunk may take."""


@contextmanager
def trusting(path: str) -> Iterator[None]:
    """Let a library read the header of a file; where that fails, the file is damaged.

    Raises
    ------
    SourceError
        In place of any of `LYING`, and where the header asks for more memory than there is.
    """
    try:
        yield
    except (*LYING, MemoryError) as error:
        fault = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{path} is damaged: {fault[:200]}; copy it again") from error


def pyramid(sizes: Sequence[tuple[int, int]], path: str) -> tuple[Level, ...]:
    """Lay levels of some heights and widths over the first of them.

    Raises
    ------
    SourceError
        If they cannot be those of one image.
    """
    height0, width0 = sizes[0]
    for height, width in sizes:
        if not (0 < height <= LONGEST_SIDE and 0 < width <= LONGEST_SIDE):
            raise SourceError(
                f"{path} claims to have {width} x {height} pixels, where 1 to {LONGEST_SIDE} "
                "to a side can be; it is damaged, copy it again"
            )
        if height > height0 or width > width0:
            raise SourceError(
                f"{path} has a level of {width} x {height} pixels over one of "
                f"{width0} x {height0}; it is damaged, copy it again"
            )
    return tuple(
        Level(height, width, level_downsample(height0, height), level_downsample(width0, width))
        for height, width in sizes
    )


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may say about a source."""

    spacing: tuple[float, float] | None = None
    """Height and width of a level-0 pixel, in µm for a slide and CRS units for a scene."""
    bands: tuple[str, ...] | None = None
    """The bands to read, in order; all if None."""
    crs: str | None = None
    """To reproject a scene to."""
    bounds: tuple[float, float, float, float] | None = None
    """West, south, east and north of what is read, in the CRS in which it is."""
    aoi: str | None = None
    """A GeoJSON file of polygons outside of which nothing is valid."""
    mask_clouds: bool = False
    """Whether clouds and their shadows are not valid."""

    @classmethod
    def of(
        cls,
        spacing: float | tuple[float, float] | None,
        bands: Sequence[str] | None,
        crs: str | None = None,
        bounds: tuple[float, float, float, float] | None = None,
        aoi: str | None = None,
        mask_clouds: bool = False,
    ) -> Options:
        """Take one spacing for both axes, and any sequence of bands."""
        if spacing is not None and not isinstance(spacing, tuple):
            spacing = (spacing, spacing)
        return cls(spacing, None if bands is None else tuple(bands), crs, bounds, aoi, mask_clouds)

    @property
    def changes_grid(self) -> bool:
        """Whether pixels are to be read elsewhere than they lie, or not all of them."""
        return bool(self.crs or self.bounds or self.aoi or self.mask_clouds)


class PerThread(Generic[Handle]):
    """One open handle for each thread that asks; it closes with its thread."""

    def __init__(self, open_handle: Callable[[], Handle]) -> None:
        self._open = open_handle
        self._local = threading.local()

    def get(self) -> Handle:
        """Return this thread's handle, opened on first use."""
        if not hasattr(self._local, "handle"):
            self._local.handle = self._open()
        handle: Handle = self._local.handle
        return handle

    def renew(self) -> None:
        """Forget this thread's handle; the next use opens another."""
        del self._local.handle


@dataclass(frozen=True, eq=False)
class FileSource:
    """A `Source` over one file or folder; a reader adds how to read inside the image."""

    path: str
    options: Options
    kind: Literal["slide", "scene"]
    reader: str
    levels: tuple[Level, ...]
    bands: tuple[Band, ...]
    dtype: np.dtype[Any]
    spacing: Spacing | None
    crs: str | None
    transform: tuple[float, float, float, float, float, float] | None
    metadata: dict[str, str]

    def __post_init__(self) -> None:
        if len(self.bands) > MOST_BANDS:
            raise SourceError(
                f"{self.path} claims to have {len(self.bands)} bands, where {MOST_BANDS} can be "
                "read at once; choose some with --bands, or copy it again if it is damaged"
            )

    def read_level(self, level: int, window: Window) -> Pixels:
        """Read a window of one level; see `gigavim.sources.source.Source.read_level`."""
        size = self.levels[level]
        top, bottom = _clip(window.y, window.height, size.height)
        left, right = _clip(window.x, window.width, size.width)
        inside = Window(top, left, bottom - top, right - left)
        if inside == window:
            return self._read(level, window)
        values, valid = self._blank(window)
        if inside.height == 0 or inside.width == 0:
            return Pixels(values, valid)
        pixels = self._read(level, inside)
        there = np.s_[top - window.y : bottom - window.y, left - window.x : right - window.x]
        values[there] = pixels.values
        valid[there] = pixels.valid
        return Pixels(values, valid, pixels.errors, pixels.read_s)

    def _read(self, level: int, window: Window) -> Pixels:
        """Read a window that lies in the image."""
        raise NotImplementedError

    def _joined(
        self, level: int, window: Window, parts: Iterable[tuple[Window, Part | Exception]]
    ) -> Pixels:
        """Join the parts of a window; those that could not be read are not valid."""
        read: list[tuple[Window, Part]] = []
        errors: list[ReadError] = []
        for part, result in parts:
            if isinstance(result, Exception):
                errors.append(ReadError(level, part, _fault(result)))
            elif part == window:
                return Pixels(*result)
            else:
                read.append((part, result))
        values, valid = self._blank(window)
        for part, result in read:
            top, left = part.y - window.y, part.x - window.x
            there = np.s_[top : top + part.height, left : left + part.width]
            values[there], valid[there] = result
        return Pixels(values, valid, tuple(errors))

    def _blank(self, window: Window) -> Part:
        """Values and validity of a window in which nothing has been read yet."""
        shape = window.height, window.width
        return np.zeros((*shape, len(self.bands)), self.dtype), np.zeros(shape, np.bool_)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.path, self.options)


def _fault(fault: Exception) -> str:
    """Return what the library below says of a fault, in one line."""
    return " ".join(str(fault.__cause__ or fault).split())


def _clip(start: int, length: int, size: int) -> tuple[int, int]:
    first = min(max(start, 0), size)
    return first, min(max(start + length, first), size)


def _open_again(path: str, options: Options) -> FileSource:
    from gigavim.sources import open_with

    source = open_with(path, options)
    assert isinstance(source, FileSource)
    return source
