"""A class map and its probabilities as OME-TIFF, for Bio-Formats, QuPath and Fiji."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from gigavim.exports.place import new_path
from gigavim.exports.result import Layer, Result
from gigavim.ngff import STEPS

_TILE = 512
# OME's words for the units that spacings have; a degree is no length.
_UNITS = {"µm": "µm", "metre": "m", "foot": "ft"}


def write_ometiff(result: Result, path: Path, *, head: str | None = None) -> None:
    """Write a pyramid of the class map with its colours, and one of the probabilities behind it.

    Probabilities p are stored as 1 + 254 p, 0 for none: as the store has them.
    """
    import tifffile

    layer = result.layer(head)
    probabilities = result.probabilities(layer.name)
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, 1 : len(layer.names) + 1] = np.array(layer.colours, np.uint16).T * 257
    with new_path(path) as partial, tifffile.TiffWriter(partial, ome=True, bigtiff=True) as file:
        names = ", ".join(f"{value} {name}" for value, name in enumerate(layer.names, start=1))
        about: dict[str, Any] = {
            "axes": "YX",
            "Name": layer.name,
            "Description": f"0 none, {names}",
        }
        _write_pyramid(file, layer, layer.levels, about, photometric="palette", colormap=colormap)
        if probabilities:
            channels = [f"{name}, 1 + {STEPS} p" for name in layer.names]
            about = {"axes": "CYX", "Name": f"{layer.name} probabilities"}
            about["Channel"] = {"Name": channels}
            _write_pyramid(file, layer, probabilities, about, photometric="minisblack")


def _write_pyramid(
    file: Any,
    layer: Layer,
    levels: tuple[zarr.Array[Any], ...],
    about: dict[str, Any],
    **options: Any,
) -> None:
    """Write an image, coarser levels in its SubIFDs, tile by tile."""
    place = layer.registration
    unit = _UNITS.get(place.spacing.unit)
    height, width = place.scale
    if unit is not None:
        about |= {
            "PhysicalSizeY": height,
            "PhysicalSizeYUnit": unit,
            "PhysicalSizeX": width,
            "PhysicalSizeXUnit": unit,
        }
    options |= {"tile": (_TILE, _TILE), "compression": "deflate"}
    for number, level in enumerate(levels):
        file.write(
            _tiles(level),
            shape=level.shape,
            dtype=level.dtype,
            metadata=None if number else about,
            subifds=None if number else len(levels) - 1,
            subfiletype=1 if number else 0,
            **options,
        )


def _tiles(level: zarr.Array[Any]) -> Iterator[NDArray[Any]]:
    """Yield the tiles of a level, plane by plane in rows, the last ones filled up with 0."""
    *planes, rows, columns = level.shape
    for plane in np.ndindex(*planes):
        for row in range(0, rows, _TILE):
            # A row of tiles at a time, since a file of the store is as high as eight of them.
            strip = np.asarray(level[(*plane, slice(row, row + _TILE))])
            for column in range(0, columns, _TILE):
                part = strip[:, column : column + _TILE]
                ends = [(0, _TILE - side) for side in part.shape]
                yield np.pad(part, ends)
