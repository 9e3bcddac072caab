"""Maps and class maps as OME-Zarr 0.5 pyramids, in the right place.

Specification: https://ngff.openmicroscopy.org/0.5. A scene carries its georeference as well: level
0 with its coordinates, as xarray wants it, and coarser levels a group deeper, since their shapes
would not fit into the same dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
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
    group = parent.create_group(name, overwrite=True)
    multiscales = _write_pyramid(group, labels, _halve_labels, ("y", "x"), registration)
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"name": name, "type": "mode", **multiscales}],
        "image-label": image_label,
    }
    listed: Any = parent.attrs.get("ome", {"labels": []})
    parent.attrs["ome"] = {"version": "0.5", "labels": sorted({*listed["labels"], name})}


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
    group = parent.create_group(name, overwrite=True)
    multiscales = _write_pyramid(group, values, _halve_values, ("c", "y", "x"), registration)
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"name": name, "type": "mean", **multiscales}],
        "omero": {
            "channels": [
                {
                    "label": channel,
                    "color": bytes(colour).hex().upper(),
                    "active": True,
                    "window": _display_range(plane),
                }
                for channel, colour, plane in zip(channels, colours, values, strict=True)
            ]
        },
    }


def _write_pyramid(
    group: zarr.Group,
    values: NDArray[Any],
    halve: Callable[[NDArray[Any]], NDArray[Any]],
    axes: tuple[str, ...],
    registration: Registration,
) -> dict[str, Any]:
    """Write levels until one is small, and return what NGFF says about them."""
    folder = "overviews/" if registration.crs else ""
    datasets = []
    factor, path = 1, "0"
    while True:
        level = registration.reduced(factor)
        array = _write_level(group, path, values, axes)
        if level.crs and level.cell_transform:
            array.attrs.update(geo_attributes(level.crs, level.cell_transform, values.shape[-2:]))
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
        if max(values.shape[-2:]) <= _SMALLEST_SIDE:
            break
        values = halve(values)
        factor *= 2
        path = f"{folder}{len(datasets)}"
    return {"axes": [_axis(name, registration.spacing.unit) for name in axes], "datasets": datasets}


def _write_level(
    group: zarr.Group, path: str, values: NDArray[Any], axes: tuple[str, ...]
) -> zarr.Array[Any]:
    """Write one array, in few files."""
    chunk = [max(1, min(size, _CHUNK)) for size in values.shape[-2:]]
    shard = [
        side * min(-(-size // side), _CHUNKS_PER_SHARD)
        for side, size in zip(chunk, values.shape[-2:], strict=True)
    ]
    lead = [1] * (values.ndim - 2)
    array = group.create_array(
        path,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(*lead, *chunk),
        shards=(*lead, *shard),
        compressors=ZstdCodec(level=3),
        dimension_names=axes,
    )
    array[:] = values
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


def _halve_labels(labels: NDArray[Any]) -> NDArray[Any]:
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


def _display_range(plane: NDArray[Any]) -> dict[str, float]:
    """Return the range that a viewer should show."""
    finite = plane[np.isfinite(plane)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return {"min": low, "max": high, "start": low, "end": high}
