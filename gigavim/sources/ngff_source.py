"""OME-Zarr 0.4 and 0.5 through zarr."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import BaseZarrError

from gigavim.errors import SourceError
from gigavim.geometry import Spacing, Window
from gigavim.sources.bands import name_bands, select_bands
from gigavim.sources.file_source import (
    LARGEST_TILE,
    LYING,
    FileSource,
    Options,
    pyramid,
    trusting,
)
from gigavim.sources.narrow import read_around
from gigavim.sources.source import RGB, Band, Pixels, ReadError
from gigavim.sources.spacing import MICROMETRE, micrometres, user_spacing


@dataclass(frozen=True, eq=False, kw_only=True)
class NgffSource(FileSource):
    """An image in an OME-Zarr."""

    arrays: tuple[zarr.Array[Any], ...] = field(repr=False)
    """One for each level; zarr's arrays may be shared between threads."""
    axes: str
    """Letters of the axes, ``tczyx`` or some of them."""
    channels: tuple[int, ...]

    def _read(self, level: int, window: Window) -> Pixels:
        values, valid = self._blank(window)
        errors: list[ReadError] = []
        chunk = dict(zip(self.axes, self.arrays[level].chunks, strict=True))
        cell = chunk["y"], chunk["x"]
        for part, result in read_around(
            partial(self._part, level), [window], cell, (*LYING, BaseZarrError)
        ):
            if isinstance(result, Exception):
                errors.append(ReadError(level, part, str(result)))
                continue
            top, left = part.y - window.y, part.x - window.x
            there = np.s_[top : top + part.height, left : left + part.width]
            values[there] = result
            valid[there] = True
        if self.dtype.kind == "f":
            valid &= np.isfinite(values).all(-1)
            values[~valid] = 0
        return Pixels(values, valid, tuple(errors))

    def _part(self, level: int, window: Window) -> NDArray[Any]:
        """Read all wanted channels of a window, at the first depth and time."""
        index: dict[str, Any] = {
            "y": slice(window.y, window.y + window.height),
            "x": slice(window.x, window.x + window.width),
            "c": list(self.channels),
        }
        array = self.arrays[level]
        stored = np.asarray(array.oindex[tuple(index.get(axis, 0) for axis in self.axes)])
        if "c" not in self.axes:
            return stored[..., None]
        kept = "".join(axis for axis in self.axes if axis in index)
        return stored.transpose([kept.index(axis) for axis in "yxc"])


def open_ngff(path: str, options: Options) -> NgffSource:
    """Open the image of an OME-Zarr folder; the first one of a collection.

    Raises
    ------
    SourceError
        If the folder is no OME-Zarr, or its arrays are missing.
    BandError
        If it has no channel that was asked for.
    """
    with trusting(path):
        group, attributes = _image(path)
        multiscale = attributes["multiscales"][0]
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale["axes"]]
        letters = "".join(axis["name"] for axis in axes)
        arrays = tuple(_array(group, dataset["path"], path) for dataset in multiscale["datasets"])
        sizes = [dict(zip(letters, array.shape, strict=True)) for array in arrays]
        levels = pyramid([(size["y"], size["x"]) for size in sizes], path)
        bands = _bands(sizes[0].get("c", 1), arrays[0].dtype, attributes)
        spacing = _spacing(multiscale, axes)
    channels = select_bands(options.bands, bands, path)
    return NgffSource(
        path=path,
        options=options,
        kind="slide",
        reader="zarr",
        levels=levels,
        bands=name_bands(options.bands, bands, channels),
        dtype=arrays[0].dtype,
        spacing=user_spacing(options.spacing, MICROMETRE) or spacing,
        crs=None,
        transform=None,
        metadata={
            "OME-Zarr": str(attributes.get("version") or multiscale.get("version") or "0.4"),
            "axes": f"{letters} {arrays[0].shape}",
        },
        arrays=arrays,
        axes=letters,
        channels=channels,
    )


def _array(group: zarr.Group, name: str, path: str) -> zarr.Array[Any]:
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise SourceError(f"{path}: its array {name!r} is missing; copy the folder again")
    if 0 in array.chunks:
        raise SourceError(f"{path}: its array {name!r} has chunks of no size; copy it again")
    if math.prod(array.chunks) * array.dtype.itemsize > LARGEST_TILE:
        raise SourceError(
            f"{path}: its array {name!r} has chunks of over 1 GiB; write smaller ones"
        )
    return array


def _image(path: str) -> tuple[zarr.Group, Mapping[str, Any]]:
    """Return the group that holds a multiscale image, and its OME attributes."""
    try:
        group = zarr.open_group(path, mode="r")
    except (OSError, ValueError, BaseZarrError) as error:
        raise SourceError(
            f"{path} is a folder, but no OME-Zarr; name a file in it, or an OME-Zarr"
        ) from error
    attributes = _ome(group)
    if "multiscales" not in attributes and "0" in group:
        # bioformats2raw puts the images of a file in numbered groups.
        first = group["0"]
        if isinstance(first, zarr.Group):
            group, attributes = first, _ome(first)
    if "multiscales" not in attributes:
        raise SourceError(f"{path} is a Zarr, but holds no OME image; name the group that does")
    return group, attributes


def _ome(group: zarr.Group) -> Mapping[str, Any]:
    """Return the OME attributes, which 0.5 keeps under a key of their own."""
    attributes = group.attrs.asdict()
    inner = attributes.get("ome", attributes)
    return inner if isinstance(inner, Mapping) else {}


def _bands(count: int, dtype: np.dtype[Any], attributes: Mapping[str, Any]) -> tuple[Band, ...]:
    channels = attributes.get("omero", {}).get("channels", [])
    labels = [channel.get("label") for channel in channels]
    if len(labels) == count and all(labels):
        return tuple(Band(str(label)) for label in labels)
    if count == 3 and dtype == np.uint8:
        return RGB
    return tuple(Band(f"band {index}") for index in range(1, count + 1))


def _spacing(multiscale: Mapping[str, Any], axes: list[dict[str, Any]]) -> Spacing | None:
    """Multiply the scales of level 0 and of the whole pyramid, in the unit of the axes."""
    letters = [axis["name"] for axis in axes]
    steps = [
        *multiscale["datasets"][0].get("coordinateTransformations", []),
        *multiscale.get("coordinateTransformations", []),
    ]
    scales = [step["scale"] for step in steps if step["type"] == "scale"]

    def side(letter: str) -> Spacing | None:
        index = letters.index(letter)
        size = math.prod(scale[index] for scale in scales)
        return micrometres(size, size, axes[index].get("unit"), "NGFF scale")

    y, x = side("y"), side("x")
    return Spacing(y.y, x.x, MICROMETRE, y.origin) if scales and y and x else None
