"""Slides through OpenSlide: the general path, for every vendor's format.

Coordinates: OpenSlide takes a location in level-0 pixels and a size in level pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import openslide
from numpy.typing import NDArray

from gigavim.errors import SourceError
from gigavim.geometry import Window
from gigavim.sources.bands import name_bands, select_bands
from gigavim.sources.file_source import FileSource, Options, PerThread, pyramid, trusting
from gigavim.sources.narrow import CELL, cell_side, read_around
from gigavim.sources.source import RGB, Pixels, ReadError
from gigavim.sources.spacing import MICROMETRE, openslide_spacing, user_spacing

BLOCK = 1024
"""Reads start at multiples of this on a level whose pixels do not fall on whole level-0 pixels."""


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenSlideSource(FileSource):
    """A slide that OpenSlide reads."""

    selected: tuple[int, ...]
    """Which of red, green and blue."""
    cells: tuple[tuple[int, int], ...]
    """For each level, height and width of the smallest part that can fail, in level pixels."""
    handles: PerThread[openslide.OpenSlide] = field(repr=False)

    def _read(self, level: int, window: Window) -> Pixels:
        values, valid = self._blank(window)
        errors: list[ReadError] = []
        for part, rgba in read_around(
            partial(self._region, level),
            self._parts(level, window),
            self.cells[level],
            (openslide.OpenSlideError,),
        ):
            if isinstance(rgba, Exception):
                errors.append(ReadError(level, part, str(rgba)))
                continue
            # A part may start before its window.
            top, left = max(part.y, window.y), max(part.x, window.x)
            rgba = rgba[top - part.y :, left - part.x :]
            there = np.s_[
                top - window.y : part.y + part.height - window.y,
                left - window.x : part.x + part.width - window.x,
            ]
            valid[there] = seen = rgba[..., 3] > 0
            # Without fancy indexing where all bands are read, which is the usual case.
            colours = rgba[..., :3] if self.selected == (0, 1, 2) else rgba[..., self.selected]
            values[there] = colours if seen.all() else np.where(seen[..., None], colours, 0)
        return Pixels(values, valid, tuple(errors))

    def _parts(self, level: int, window: Window) -> Iterator[Window]:
        """Cut a window so that no pixel depends on where its window starts.

        Where a level pixel falls between two level-0 pixels the location must be rounded, and the
        pixels shift by that fraction: so those levels are read from fixed corners.
        """
        if self.handles.get().level_downsamples[level].is_integer():
            yield window
            return
        bottom, right = window.y + window.height, window.x + window.width
        for y in range(window.y // BLOCK * BLOCK, bottom, BLOCK):
            for x in range(window.x // BLOCK * BLOCK, right, BLOCK):
                yield Window(y, x, min(BLOCK, bottom - y), min(BLOCK, right - x))

    def _region(self, level: int, window: Window) -> NDArray[np.uint8]:
        slide = self.handles.get()
        downsample = slide.level_downsamples[level]
        location = round(window.x * downsample), round(window.y * downsample)
        try:
            image = slide.read_region(location, level, (window.width, window.height))
        except openslide.OpenSlideError:
            # OpenSlide answers every later call on this handle with the same error.
            self.handles.renew()
            raise
        return np.asarray(image)


def open_with_openslide(path: str, options: Options) -> OpenSlideSource:
    """Open a slide with OpenSlide.

    Raises
    ------
    SourceError
        If OpenSlide knows the format and refuses the file.
    """
    handles = PerThread(partial(_open, path))
    slide = handles.get()
    # A name that is no text has no value that could be asked for.
    properties = {name: text for name in slide.properties if (text := slide.properties.get(name))}
    levels = pyramid([(height, width) for width, height in slide.level_dimensions], path)
    with trusting(path):
        cells = tuple(_cell(properties, level) for level in range(len(levels)))
    selected = select_bands(options.bands, RGB, path)
    return OpenSlideSource(
        path=path,
        options=options,
        kind="slide",
        reader="openslide",
        levels=levels,
        bands=name_bands(options.bands, RGB, selected),
        dtype=np.dtype(np.uint8),
        spacing=user_spacing(options.spacing, MICROMETRE) or openslide_spacing(properties),
        crs=None,
        transform=None,
        metadata=slide_metadata(properties),
        selected=selected,
        cells=cells,
        handles=handles,
    )


def slide_metadata(properties: dict[str, str]) -> dict[str, str]:
    """Pick what people ask about from OpenSlide's properties."""
    fields = {
        "vendor": "openslide.vendor",
        "objective power": "openslide.objective-power",
        "scanner": "aperio.ScanScope ID",
        "model": "tiff.Model",
        "comment": "openslide.comment",
    }
    found = {label: properties[key] for label, key in fields.items() if key in properties}
    return {label: " ".join(text.split())[:200] for label, text in found.items()}


def _open(path: str) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        fault = " ".join(str(error).split())
        raise SourceError(
            f"{path}: OpenSlide knows the format but cannot open it: {fault}; "
            f"convert it, for example to OME-TIFF, or copy it again"
        ) from error


def _cell(properties: dict[str, str], level: int) -> tuple[int, int]:
    """Height and width of the smallest part that is tried alone."""
    tile = f"openslide.level[{level}].tile-"
    return (
        cell_side(int(properties.get(f"{tile}height", CELL))),
        cell_side(int(properties.get(f"{tile}width", CELL))),
    )
