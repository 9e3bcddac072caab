"""Maps and class maps as OME-Zarr 0.5 pyramids, in the right place.

A map that fits into memory is written by `write_label` or `write_image`. A larger one is created,
filled window by window, and finished, which adds coarser levels a block at a time.

Specification: https://ngff.openmicroscopy.org/0.5. A scene carries its georeference as well: level
0 with its coordinates, as xarray wants it, and coarser levels a group deeper, since their shapes
would not fit into the same dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import ZstdCodec

from gigavim.georeference import (
    Registration,
    Transform,
    cell_centres,
    geo_attributes,
    grid_mapping,
)

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

_CHUNK = 512
_CHUNKS_PER_SHARD = 8
# A level that fits a screen needs no coarser one.
_SMALLEST_SIDE = 256
# NGFF's words for the units that spacings have; others are left out.
_UNITS = {"µm": "micrometer", "metre": "meter", "foot": "foot"}

STEPS = 254
"""A probability p is stored as the whole number 1 + 254 p; 0 stands for none."""


def write_label(
    parent: zarr.Group,
    name: str,
    labels: NDArray[np.uint8],
    names: Sequence[str],
    colours: Sequence[Colour],
    registration: Registration,
) -> None:
    """Write a class map as a label pyramid in ``parent``, which becomes a labels group.

    Parameters
    ----------
    labels
        Class of each cell, shape (rows, columns); 0 is background, class ``k`` is ``names[k - 1]``.
    names, colours
        Of the classes 1, 2, ...
    """
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.max(initial=0) > len(names):
        raise ValueError(f"labels are (rows, columns) uint8 up to {len(names)}")
    array = create_level(parent, name, labels.shape, np.uint8)
    array[:] = labels
    finish_label(parent, name, names, colours, registration)


def finish_label(
    parent: zarr.Group,
    name: str,
    names: Sequence[str],
    colours: Sequence[Colour],
    registration: Registration,
) -> None:
    """Make a class map of a level that `create_level` made and that is filled; as `write_label`."""
    values = range(1, len(names) + 1)
    image_label: dict[str, Any] = {
        "version": "0.5",
        "colors": [
            {"label-value": value, "rgba": [*colour, 255]}
            for value, colour in zip(values, colours, strict=True)
        ],
        "properties": [
            {"label-value": value, "class": name} for value, name in zip(values, names, strict=True)
        ],
    }
    group = _group(parent, name)
    multiscales = _add_levels(group, halve_labels, ("y", "x"), registration)
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"name": name, "type": "mode", **multiscales}],
        "image-label": image_label,
    }
    for dataset in multiscales["datasets"]:
        _array(group, dataset["path"]).attrs.update(_flags(names))
    listed: Any = parent.attrs.get("ome", {"labels": []})
    parent.attrs["ome"] = {"version": "0.5", "labels": sorted({*listed["labels"], name})}


def _flags(names: Sequence[str]) -> dict[str, Any]:
    """Say what the values of a class map mean, in the words of CF and of rioxarray.

    Without ``_FillValue``, for which xarray would turn classes into floats.
    """
    return {
        "nodata": 0,
        "flag_values": list(range(1, len(names) + 1)),
        "flag_meanings": " ".join("_".join(name.split()) for name in names),
    }


def write_image(
    parent: zarr.Group,
    name: str,
    values: NDArray[np.floating[Any]],
    channels: Sequence[str],
    colours: Sequence[Colour],
    registration: Registration,
) -> None:
    """Write maps over the same cells as one image pyramid in ``parent``.

    Parameters
    ----------
    values
        Shape (channel, rows, columns), floats; NaN where there is nothing to say.
    channels, colours
        Of each channel, for viewers.
    """
    if values.ndim != 3 or values.dtype.kind != "f" or len(values) != len(channels):
        raise ValueError(
            f"values are (channel, rows, columns) floats with {len(channels)} channels"
        )
    array = create_level(parent, name, values.shape, values.dtype)
    array[:] = values
    ranges = [_display_range(plane) for plane in values]
    _finish_image(parent, name, channels, colours, ranges, _halve_values, registration)


def finish_probabilities(
    parent: zarr.Group,
    name: str,
    channels: Sequence[str],
    colours: Sequence[Colour],
    registration: Registration,
) -> None:
    """Make a map of probabilities of a level, uint8, that is filled with what `coded` returned.

    Its attributes say so in the words of CF, so that xarray decodes it.
    """
    ranges = [{"min": 0.0, "max": 255.0, "start": 1.0, "end": 255.0}] * len(channels)
    paths = _finish_image(parent, name, channels, colours, ranges, _halve_coded, registration)
    for path in paths:
        array = _array(_group(parent, name), path)
        array.attrs.update(_FillValue=0, scale_factor=1 / STEPS, add_offset=-1 / STEPS)


def coded(probs: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return probabilities as they are stored: 1 + 254 p, and 0 for NaN.

    >>> coded(np.array([0.0, 0.5, 1.0, np.nan]))
    array([  1, 128, 255,   0], dtype=uint8)
    """
    steps = np.rint(probs * STEPS) + 1
    return np.where(np.isnan(steps), 0, steps).astype(np.uint8)


def create_level(
    parent: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    *,
    shard: int = _CHUNK * _CHUNKS_PER_SHARD,
) -> zarr.Array[Any]:
    """Begin a pyramid: its finest level, empty, in the place of what is called so.

    Parameters
    ----------
    shape
        (rows, columns), or (channel, rows, columns).
    shard
        Side of the squares that share a file, in cells: whoever fills the level in windows fills
        whole ones, since a file is written as a whole.
    """
    group = parent.create_group(name, overwrite=True)
    return _create(group, "0", shape, dtype, shard)


def _finish_image(
    parent: zarr.Group,
    name: str,
    channels: Sequence[str],
    colours: Sequence[Colour],
    ranges: Sequence[dict[str, float]],
    halve: Callable[[NDArray[Any]], NDArray[Any]],
    registration: Registration,
) -> list[str]:
    """Add to the finest level of an image what makes it one; return the paths of all levels."""
    group = _group(parent, name)
    multiscales = _add_levels(group, halve, ("c", "y", "x"), registration)
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"name": name, "type": "mean", **multiscales}],
        "omero": {
            "channels": [
                {
                    "label": channel,
                    "color": bytes(colour).hex().upper(),
                    "active": True,
                    "window": window,
                }
                for channel, colour, window in zip(channels, colours, ranges, strict=True)
            ]
        },
    }
    return [dataset["path"] for dataset in multiscales["datasets"]]


def _add_levels(
    group: zarr.Group,
    halve: Callable[[NDArray[Any]], NDArray[Any]],
    axes: tuple[str, ...],
    registration: Registration,
) -> dict[str, Any]:
    """Write coarser levels until one is small, and return what NGFF says about all."""
    folder = "overviews/" if registration.crs else ""
    datasets: list[dict[str, Any]] = []
    factor, path = 1, "0"
    array = _array(group, path)
    while True:
        level = registration.reduced(factor)
        if level.crs and level.cell_transform:
            rows, columns = array.shape[-2:]
            array.attrs.update(geo_attributes(level.crs, level.cell_transform, (rows, columns)))
            if factor == 1:
                _write_coordinates(group, array, level.crs, level.cell_transform)
        lead = len(axes) - 2
        datasets.append(
            {
                "path": path,
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0] * lead + list(level.scale)},
                    {"type": "translation", "translation": [0.0] * lead + list(level.translation)},
                ],
            }
        )
        if max(array.shape[-2:]) <= _SMALLEST_SIDE:
            break
        factor *= 2
        path = f"{folder}{len(datasets)}"
        array = _write_halved(group, path, array, halve)
    return {"axes": [_axis(name, registration.spacing.unit) for name in axes], "datasets": datasets}


def _write_halved(
    group: zarr.Group,
    path: str,
    finer: zarr.Array[Any],
    halve: Callable[[NDArray[Any]], NDArray[Any]],
) -> zarr.Array[Any]:
    """Write the next coarser level, one of its files at a time."""
    *lead, rows, columns = finer.shape
    shape = (*lead, -(-rows // 2), -(-columns // 2))
    shard = _CHUNK * _CHUNKS_PER_SHARD
    array = _create(group, path, shape, finer.dtype, shard)
    for y in range(0, shape[-2], shard):
        for x in range(0, shape[-1], shard):
            under = np.s_[..., 2 * y : 2 * (y + shard), 2 * x : 2 * (x + shard)]
            array[..., y : y + shard, x : x + shard] = halve(np.asarray(finer[under]))
    return array


def _create(
    group: zarr.Group, path: str, shape: tuple[int, ...], dtype: DTypeLike, shard: int
) -> zarr.Array[Any]:
    """Create one array, of few files."""
    *lead, rows, columns = shape
    chunk = [max(1, min(size, shard, _CHUNK)) for size in (rows, columns)]
    shards = [
        side * min(-(-size // side), shard // side)
        for side, size in zip(chunk, (rows, columns), strict=True)
    ]
    ones = [1] * len(lead)
    return group.create_array(
        path,
        shape=shape,
        dtype=dtype,
        chunks=(*ones, *chunk),
        shards=(*ones, *shards),
        compressors=ZstdCodec(level=3),
        dimension_names=("c", "y", "x")[-len(shape) :],
        overwrite=True,
    )


def _group(parent: zarr.Group, name: str) -> zarr.Group:
    group = parent[name]
    assert isinstance(group, zarr.Group)  # create_level made it
    return group


def _array(group: zarr.Group, path: str) -> zarr.Array[Any]:
    array = group[path]
    assert isinstance(array, zarr.Array)  # create_level made it
    return array


def _write_coordinates(
    group: zarr.Group, array: zarr.Array[Any], crs: str, transform: Transform
) -> None:
    """Add what CF asks for beside level 0: the grid mapping, and x and y of the cells' centres."""
    # Named as a coordinate too, xarray takes it along without being told to.
    array.attrs.update({"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"})
    reference = group.create_array("spatial_ref", shape=(), dtype=np.int64)
    reference.attrs.update(grid_mapping(crs, transform))
    centres = cell_centres(transform, (array.shape[-2], array.shape[-1]))
    for name, values in zip(("y", "x"), centres or (), strict=False):
        coordinate = group.create_array(
            name, shape=values.shape, dtype=values.dtype, dimension_names=(name,)
        )
        coordinate[:] = values
        coordinate.attrs["axis"] = name.upper()


def _axis(name: str, unit: str) -> dict[str, str]:
    """Describe an axis."""
    if name == "c":
        return {"name": name, "type": "channel"}
    known = {"unit": _UNITS[unit]} if unit in _UNITS else {}
    return {"name": name, "type": "space", **known}


def _quads(values: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return the four cells that each cell of the next level joins; an odd edge counts twice."""
    rows, columns = values.shape[-2:]
    ends = [(0, 0)] * (values.ndim - 2) + [(0, rows % 2), (0, columns % 2)]
    even = np.pad(values, ends, mode="edge")
    return tuple(even[..., y::2, x::2] for y in (0, 1) for x in (0, 1))


def halve_labels(labels: NDArray[Any]) -> NDArray[Any]:
    """Join 2 x 2 cells into their most frequent class, the first in reading order of equals."""
    a, b, c, d = _quads(labels)
    first = (a == b) | (a == c) | (a == d)
    second = (b == c) | (b == d)
    rest = np.where(c == d, c, a)
    return np.where(first, a, np.where(second, b, rest))


def _halve_values(values: NDArray[Any]) -> NDArray[Any]:
    """Join 2 x 2 cells into the mean of those that are not NaN."""
    quads = np.stack(_quads(values)).astype(np.float32, copy=False)
    known = ~np.isnan(quads)
    count = known.sum(axis=0)
    total = np.where(known, quads, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(values.dtype)


def _halve_coded(values: NDArray[Any]) -> NDArray[Any]:
    """Join 2 x 2 cells into the mean of those that are not 0."""
    quads = np.stack(_quads(values))
    count = (quads > 0).sum(axis=0, dtype=np.uint16)
    total = quads.sum(axis=0, dtype=np.uint16)
    mean: NDArray[Any] = (total + count // 2) // np.maximum(count, 1)
    return mean.astype(np.uint8)


def _display_range(plane: NDArray[Any]) -> dict[str, float]:
    """Return the range that a viewer should show."""
    finite = plane[np.isfinite(plane)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return {"min": low, "max": high, "start": low, "end": high}
