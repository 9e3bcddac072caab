"""Rasters through GDAL: bands, nodata, masks, scale and offset, overviews, CRS.

A handle of rasterio belongs to one thread: sharing one crashes the interpreter.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError, RasterioIOError

from gigavim.errors import SourceError
from gigavim.geometry import Spacing, Window
from gigavim.sources.bands import band_in_file_name, name_bands, select_bands, sensor_bands
from gigavim.sources.file_source import (
    LYING,
    FileSource,
    Options,
    Part,
    PerThread,
    pyramid,
    trusting,
)
from gigavim.sources.narrow import cell_side, read_around
from gigavim.sources.source import Band, Pixels
from gigavim.sources.spacing import (
    MICROMETRE,
    resolution_spacing,
    transform_spacing,
    user_spacing,
)

UNREADABLE = (*LYING, RasterioError)
"""What rasterio raises on pixels that GDAL cannot decode."""

_OPENING = threading.Lock()

Where = tuple[tuple[int, int], tuple[int, int]]
"""First row and one past the last, and so the columns."""


@dataclass(frozen=True, slots=True)
class RasterBand:
    """Where a band lies and what its numbers mean."""

    dataset: str
    """GDAL's name of the file or of a variable in it."""
    index: int
    """From 1."""
    dtype: str
    """Of the numbers in the file."""
    scale: float
    offset: float


class Datasets:
    """The open datasets of one thread, each at full size or at one of its overviews."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], rasterio.DatasetReader] = {}

    def get(self, name: str, level: int) -> rasterio.DatasetReader:
        """Return a dataset at a level of its pyramid."""
        if (name, level) not in self._open:
            self._open[name, level] = open_dataset(name, level)
        return self._open[name, level]


@dataclass(frozen=True, eq=False, kw_only=True)
class RasterSource(FileSource):
    """A raster that GDAL reads."""

    selected: tuple[RasterBand, ...]
    cell: tuple[int, int]
    """Height and width of the smallest part that is tried alone."""
    datasets: PerThread[Datasets] = field(repr=False)

    def _blank(self, window: Window) -> Part:
        # GDAL gives one band after the other.
        shape = len(self.bands), window.height, window.width
        return np.zeros(shape, self.dtype).transpose(1, 2, 0), np.zeros(shape[1:], np.bool_)

    def _read(self, level: int, window: Window) -> Pixels:
        read = partial(self._part, level)
        parts = read_around(read, [window], self.cell, UNREADABLE)
        return self._joined(level, window, parts)

    def _part(self, level: int, window: Window) -> Part:
        planes = np.empty((len(self.bands), window.height, window.width), self.dtype)
        valid = np.ones((window.height, window.width), np.bool_)
        rows = window.y, window.y + window.height
        where = rows, (window.x, window.x + window.width)
        slots = iter(planes)
        for (name, _), alike in itertools.groupby(self.selected, lambda it: (it.dataset, it.dtype)):
            dataset, bands = self.datasets.get().get(name, level), list(alike)
            read = dataset.read([band.index for band in bands], window=where)
            # The bands end first, so that no slot of the next ones is lost.
            for band, stored, slot in zip(bands, read, slots, strict=False):
                valid &= _seen(dataset, band.index, stored, where)
                self._scale(band, stored, slot)
        if not valid.all():
            np.copyto(planes, 0, where=~valid)
        return planes.transpose(1, 2, 0), valid

    def _scale(self, band: RasterBand, stored: NDArray[Any], slot: NDArray[Any]) -> None:
        """Put what the numbers of a band mean in its place."""
        scale, offset = self.dtype.type(band.scale), self.dtype.type(band.offset)
        if np.can_cast(stored.dtype, self.dtype):
            # The same numbers, in two passes that together take half the time of one that casts.
            np.copyto(slot, stored)
            if scale != 1:
                slot *= scale
        else:
            np.multiply(stored, scale, out=slot)
        if offset != 0:
            slot += offset


def open_raster(path: str, options: Options) -> RasterSource:
    """Open anything that GDAL reads as a raster.

    Raises
    ------
    SourceError
        If GDAL does not know the format, or the values are complex.
    BandError
        If it has no band that was asked for.
    """
    with trusting(path):
        names = dataset_names(path)
        bands, stored = stored_bands(names, path)
    selected = select_bands(options.bands, bands, path)
    chosen = tuple(stored[index] for index in selected)
    datasets = PerThread(Datasets)
    first = datasets.get().get(chosen[0].dataset, 0)
    for band in chosen:
        if datasets.get().get(band.dataset, 0).shape != first.shape:
            raise SourceError(
                f"{path}: the bands are not of one size; choose some that are with --bands"
            )
    dtype = _dtype(chosen, datasets.get(), path)
    crs = crs_of(first)
    transform = tuple(first.transform)[:6]
    if not np.isfinite(transform).all() or first.transform.is_degenerate:
        raise SourceError(f"{path} is damaged: its pixels have no area; copy it again")
    placed = crs is not None or not first.transform.is_identity
    unit = _unit(crs)
    return RasterSource(
        path=path,
        options=options,
        kind="scene" if placed else "slide",
        reader="rasterio",
        levels=pyramid(_sizes(chosen, datasets.get()), path),
        bands=name_bands(options.bands, bands, selected),
        dtype=dtype,
        spacing=(
            user_spacing(options.spacing, unit or ("CRS unit" if placed else MICROMETRE))
            or transform_spacing(transform, unit)
            or (None if placed else _resolution(first))
        ),
        crs=crs.to_wkt() if crs else None,
        transform=transform if placed else None,
        metadata={"format": first.driver, "compression": _compression(first)},
        selected=chosen,
        cell=_cell(first),
        datasets=datasets,
    )


def _seen(
    dataset: rasterio.DatasetReader, index: int, stored: NDArray[Any], where: Where
) -> NDArray[np.bool_]:
    """Return which of the stored pixels of a band are valid: those that GDAL does not mask."""
    flags, nodata = dataset.mask_flag_enums[index - 1], dataset.nodatavals[index - 1]
    seen: NDArray[np.bool_]
    if flags == [MaskFlags.nodata] and stored.dtype.kind in "iu" and nodata % 1 == 0:
        # What the mask would say, for which the band would be read once more.
        seen = stored != int(nodata)
        return seen
    seen = np.isfinite(stored)
    if MaskFlags.all_valid not in flags:
        seen &= dataset.read_masks(index, window=where) > 0
    return seen


def open_dataset(name: str, level: int = 0) -> rasterio.DatasetReader:
    """Open a dataset at a level of its pyramid, for one thread.

    Raises
    ------
    SourceError
        If GDAL cannot.
    """
    try:
        # A plain picture lies nowhere, which is nothing to warn of. Filters belong to all threads.
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(name, **({"overview_level": level - 1} if level else {}))
    except RasterioIOError as error:
        fault = " ".join(str(error).replace(f"'{name}' ", "").split()).rstrip(".")
        raise SourceError(
            f"{name} is no image that can be read ({fault}); "
            "is it whole, and a slide, a raster or an OME-Zarr?"
        ) from error


def dataset_names(path: str) -> list[str]:
    """Return the file itself, or its variables where it is a container of several."""
    with open_dataset(path) as dataset:
        return [path] if dataset.count else list(dataset.subdatasets)


def stored_bands(names: list[str], path: str) -> tuple[tuple[Band, ...], list[RasterBand]]:
    """Return all bands of datasets but alpha, and where each lies.

    Raises
    ------
    SourceError
        If there is none.
    """
    labels: list[str] = []
    told: list[float | None] = []
    stored: list[RasterBand] = []
    for name in names:
        with open_dataset(name) as dataset:
            for index in dataset.indexes:
                if dataset.colorinterp[index - 1] == ColorInterp.alpha:
                    continue
                labels.append(_label(dataset, index, path))
                told.append(_wavelength_nm(dataset, index))
                scale, offset = dataset.scales[index - 1], dataset.offsets[index - 1]
                stored.append(RasterBand(name, index, dataset.dtypes[index - 1], scale, offset))
    if not stored:
        raise SourceError(f"{path} has no raster bands; is it the right file?")
    bands = zip(sensor_bands(labels, path), told, stored, strict=True)
    return tuple(Band(b.name, nm or b.wavelength_nm, at.offset) for b, nm, at in bands), stored


def _wavelength_nm(dataset: rasterio.DatasetReader, index: int) -> float | None:
    """Return the centre of a band where GDAL's IMAGERY domain says it."""
    told = dataset.tags(index, ns="IMAGERY").get("CENTRAL_WAVELENGTH_UM", "")
    try:
        return 1000 * float(told)
    except ValueError:
        return None


def _label(dataset: rasterio.DatasetReader, index: int, path: str) -> str:
    """Name a band as its description, variable, colour or file says, else by its number."""
    tags = dataset.tags(index)
    variable = tags.get("NETCDF_VARNAME", "")
    colour = dataset.colorinterp[index - 1]
    colours = ColorInterp.red, ColorInterp.green, ColorInterp.blue
    return (
        dataset.descriptions[index - 1]
        or tags.get("Name")
        or (variable if dataset.count == 1 and not variable.startswith("__") else "")
        or (colour.name if colour in colours else "")
        or (dataset.count == 1 and band_in_file_name(path))
        or f"band {index}"
    )


def _dtype(bands: tuple[RasterBand, ...], datasets: Datasets, path: str) -> np.dtype[Any]:
    """Return the type that holds every band after scale and offset."""
    types = []
    for band in bands:
        dataset = datasets.get(band.dataset, 0)
        stored = np.dtype(dataset.dtypes[band.index - 1])
        if stored.kind == "c":
            raise SourceError(
                f"{path}: band {band.index} is complex; write its amplitude to a raster first"
            )
        if dataset.colorinterp[band.index - 1] == ColorInterp.palette:
            raise SourceError(
                f"{path}: band {band.index} holds numbers of a colour table; "
                "expand it with gdal_translate -expand rgb"
            )
        types.append(stored if (band.scale, band.offset) == (1, 0) else np.dtype(np.float32))
    return np.result_type(*types)


def _sizes(bands: tuple[RasterBand, ...], datasets: Datasets) -> list[tuple[int, int]]:
    """Return the full size and the overviews that all bands have, with a mask of the same kind."""
    sizes = [datasets.get(bands[0].dataset, 0).shape]
    shared = min(len(datasets.get(band.dataset, 0).overviews(band.index)) for band in bands)
    for level in range(1, shared + 1):
        overviews = [(datasets.get(band.dataset, level), band) for band in bands]
        shape = overviews[0][0].shape
        if any(
            overview.shape != shape
            or overview.mask_flag_enums != datasets.get(band.dataset, 0).mask_flag_enums
            for overview, band in overviews
        ):
            break
        sizes.append(shape)
    return sizes


def _cell(dataset: rasterio.DatasetReader) -> tuple[int, int]:
    """Return a block; where blocks are rows of the image, as many as are worth a try."""
    height, width = dataset.block_shapes[0]
    return (cell_side(height) if width == dataset.width else height), width


def crs_of(dataset: rasterio.DatasetReader) -> CRS | None:
    """Return the CRS of a dataset."""
    if dataset.crs:
        return dataset.crs
    # Where xarray kept the CRS of a netCDF variable before CF grid mappings were usual.
    text = dataset.tags(1).get("crs")
    try:
        return CRS.from_string(text.removeprefix("+init=")) if text else None
    except CRSError:
        return None


def _unit(crs: CRS | None) -> str | None:
    return None if crs is None else str(crs.units_factor[0])


def _resolution(dataset: rasterio.DatasetReader) -> Spacing | None:
    tags = dataset.tags()
    unit = {"2": "inch", "3": "cm"}.get(tags.get("TIFFTAG_RESOLUTIONUNIT", "")[:1], "")
    x, y = (float(tags.get(f"TIFFTAG_{axis}RESOLUTION", 0)) for axis in "XY")
    return resolution_spacing(y, x, unit)


def _compression(dataset: rasterio.DatasetReader) -> str:
    # A plain string where GDAL knows the name and rasterio does not.
    return str(getattr(dataset.compression, "name", dataset.compression) or "none").lower()
