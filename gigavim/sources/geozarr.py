"""Scenes in Zarr, as xarray, rioxarray and GeoZarr write them; version 2 and 3.

GDAL reads version 3 only from 3.13 on, so zarr reads both. Where an array lies is said by the CF
grid mapping and coordinates, or by the conventions ``proj`` and ``spatial`` of GeoZarr.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError
from zarr.errors import BaseZarrError

from gigavim.errors import SourceError
from gigavim.sources.bands import sensor_bands
from gigavim.sources.clouds import is_quality_band
from gigavim.sources.layers import Raster
from gigavim.sources.pixel_grid import PixelGrid
from gigavim.sources.products import Product, ProductBand
from gigavim.sources.source import Band

Array = zarr.Array[Any]

PREFIX = "zarr::"
"""Before the path and the name of an array, where a dataset is no file of GDAL's."""

UNDECODABLE = (RuntimeError, ValueError, OSError, zlib.error, BaseZarrError)
"""What zarr and its codecs raise on a chunk that they cannot decode."""

Y, X = ("y", "lat", "latitude", "northing"), ("x", "lon", "longitude", "easting")


def zarr_product(path: str) -> Product | None:
    """Return the rasters of a Zarr; None where it holds none that lie anywhere."""
    try:
        group = zarr.open_group(path, mode="r")
    except (OSError, ValueError, BaseZarrError):
        return None
    if "ome" in group.attrs or isinstance(group.attrs.get("multiscales"), list):
        return None
    found = list(_bands(path, group))
    wavelengths = sensor_bands([each.band.name for each in found], path)
    bands = [
        ProductBand(
            known, each.dataset, each.index, each.scale, each.offset, each.nodata,
            each.has_classes, each.is_extra,
        )
        for each, known in zip(found, wavelengths, strict=True)
    ]  # fmt: skip
    bands.sort(key=lambda each: each.is_extra)
    about = {"format": f"Zarr {group.metadata.zarr_format}"}
    return Product(path, tuple(bands), about) if bands else None


def is_zarr_array(dataset: str) -> bool:
    """Whether a dataset is read by zarr, and not by GDAL."""
    return dataset.startswith(PREFIX)


def open_array(dataset: str) -> Array:
    """Open an array; zarr's may be shared between threads."""
    path, _, name = dataset.removeprefix(PREFIX).rpartition("::")
    array = zarr.open_group(path, mode="r")[name]
    assert isinstance(array, zarr.Array)
    return array


def look_at_array(dataset: str) -> Raster:
    """Learn where the pixels of an array lie.

    Raises
    ------
    SourceError
        If its CRS is none.
    """
    path, _, name = dataset.removeprefix(PREFIX).rpartition("::")
    root = zarr.open_group(path, mode="r")
    parent, _, _ = name.rpartition("/")
    group = root[parent] if parent else root
    array = root[name]
    assert isinstance(group, zarr.Group)
    assert isinstance(array, zarr.Array)
    transform = _transform(group, array)
    assert transform is not None
    count = math.prod(array.shape[:-2])
    return Raster(
        dataset,
        PixelGrid(_crs(root, group, array, path), transform, array.shape[-2], array.shape[-1]),
        (1.0,),
        (array.chunks[-2], array.chunks[-1]),
        (str(array.dtype),) * count,
        (None,) * count,
        (1.0,) * count,
        (0.0,) * count,
        (ColorInterp.undefined,) * count,
        False,
    )


def read_array(array: Array, index: int, rows: slice, columns: slice) -> NDArray[Any]:
    """Read a window of a band, from 1."""
    outer = np.unravel_index(index - 1, array.shape[:-2]) if array.ndim > 2 else ()
    place: tuple[int | slice, ...] = (*(int(each) for each in outer), rows, columns)
    return np.asarray(array[place])


def _bands(path: str, group: zarr.Group, prefix: str = "") -> Iterator[ProductBand]:
    """Yield the bands of a group and of those below it."""
    for name, member in sorted(group.members()):
        if isinstance(member, zarr.Group):
            yield from _bands(path, member, f"{prefix}{name}/")
            continue
        dims = _dims(member)
        if len(dims) < 2 or dims[-2] not in Y or dims[-1] not in X:
            continue
        outer = [size for size in member.shape[:-2] if size > 1]
        if len(outer) > 1 or _transform(group, member) is None:
            continue
        attributes = member.attrs
        labels = _labels(group, member, dims, name)
        for index, label in enumerate(labels, 1):
            is_quality = is_quality_band(label)
            yield ProductBand(
                Band(label),
                f"{PREFIX}{path}::{prefix}{name}",
                index,
                _number(attributes.get("scale_factor"), 1.0),
                _number(attributes.get("add_offset"), 0.0),
                _nodata(member),
                has_classes=is_quality,
                is_extra=is_quality,
            )


def _labels(group: zarr.Group, array: Array, dims: tuple[str, ...], name: str) -> list[str]:
    """Name the bands of an array: by itself, or by the coordinate of its third dimension."""
    for dim, size in zip(dims[:-2], array.shape[:-2], strict=True):
        if size > 1:
            coordinate = group.get(dim)
            if isinstance(coordinate, zarr.Array) and coordinate.dtype.kind in "UTO":
                return [str(each) for each in np.asarray(coordinate[:])]
            return [f"{name} {index}" for index in range(1, size + 1)]
    return [name]


def _dims(array: Array) -> tuple[str, ...]:
    """Return the names of the dimensions, in lower case."""
    told = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return tuple(str(each).lower() for each in told) if isinstance(told, Sequence) else ()


def _nodata(array: Array) -> float | None:
    told = array.attrs.get("_FillValue")
    if isinstance(told, (int, float)):
        return float(told)
    # In version 2 xarray keeps it where zarr keeps what was never written.
    fill = array.metadata.fill_value if array.metadata.zarr_format == 2 else None
    if not isinstance(fill, (int, float, np.number)) or np.isnan(fill):
        return None
    return float(fill)


def _number(value: object, usual: float) -> float:
    return float(value) if isinstance(value, (int, float)) else usual


def _mapping(group: zarr.Group, array: Array) -> Mapping[str, Any]:
    """Return the attributes of the CF grid mapping of an array."""
    name = array.attrs.get("grid_mapping", "spatial_ref")
    found = group.get(str(name))
    return found.attrs.asdict() if found is not None else {}


def _transform(group: zarr.Group, array: Array) -> Affine | None:
    """Return corners to the CRS: as the conventions say, or by evenly spaced coordinates."""
    for attributes in (array.attrs.asdict(), group.attrs.asdict()):
        for key in ("spatial:transform", "proj:transform"):
            told = attributes.get(key)
            if isinstance(told, list):
                return Affine(*told[:6])
    geo = _mapping(group, array).get("GeoTransform")
    if geo:
        return Affine.from_gdal(*(float(part) for part in str(geo).split()))
    y, x = (_coordinate(group, dim) for dim in _dims(array)[-2:])
    if y is None or x is None:
        return None
    (top, height), (left, width) = y, x
    return Affine(width, 0, left - width / 2, 0, height, top - height / 2)


def _coordinate(group: zarr.Group, dim: str) -> tuple[float, float] | None:
    """Return the first value of a coordinate and its step; None if it has no even one."""
    found = next((each for name, each in group.arrays() if name.lower() == dim), None)
    if found is None or found.ndim != 1 or found.shape[0] < 2 or found.dtype.kind not in "iuf":
        return None
    values = np.asarray(found[:], np.float64)
    step = (values[-1] - values[0]) / (len(values) - 1)
    even = values[0] + step * np.arange(len(values))
    if not step or np.abs(values - even).max() > 1e-3 * abs(step):
        return None
    return float(values[0]), float(step)


def _crs(root: zarr.Group, group: zarr.Group, array: Array, path: str) -> CRS | None:
    mapping = _mapping(group, array)
    for attributes in (mapping, *(each.attrs.asdict() for each in (array, group, root))):
        for key in ("crs_wkt", "spatial_ref", "proj:wkt2", "proj:code", "proj:epsg"):
            told = attributes.get(key)
            if told:
                return _parsed(told, path)
    return None


@cache
def _parsed(told: str | int, path: str) -> CRS:
    try:
        return CRS.from_user_input(told)
    except CRSError as error:
        raise SourceError(f"{path}: its CRS is none that PROJ knows ({error})") from error
