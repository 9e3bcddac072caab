"""A map as a GeoTIFF that QGIS opens, a class map with its colours and names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from gigavim.georeference import Registration
from gigavim.ngff import Colour
from gigavim.store.disk import write_file, writing


def write_class_geotiff(
    path: str | Path,
    labels: NDArray[np.uint8],
    registration: Registration,
    names: Sequence[str],
    colours: Sequence[Colour],
) -> None:
    """Write a class map as a Cloud Optimized GeoTIFF with a colour table and overviews.

    Class names stand in ``<path>.aux.xml``, where GDAL keeps them for every GeoTIFF.

    Parameters
    ----------
    labels
        Class of each cell, shape (rows, columns); 0 is background and written as nodata.
    registration
        Where the cells lie; the file says as much of the CRS as this does.
    names, colours
        Of the classes 1, 2, ...

    Raises
    ------
    ValueError
        If the image has no transform.
    StoreError
        If the file cannot be written; what stood there before stays.
    """
    from rasterio.io import MemoryFile

    path = Path(path)
    # In memory first: GDAL's own writing says nothing useful about a full disk.
    with MemoryFile() as memory:
        with _cog(memory, labels, registration, nodata=0, overviews="mode") as raster:
            opaque = {value: (*colour, 255) for value, colour in enumerate(colours, start=1)}
            raster.write_colormap(1, {0: (0, 0, 0, 0)} | opaque)
        with writing(path):
            write_file(path.with_name(f"{path.name}.aux.xml"), category_names(names))
            write_file(path, memory.getbuffer())


def write_value_geotiff(
    path: str | Path, values: NDArray[np.float32], registration: Registration, name: str
) -> None:
    """Write a map of numbers as a Cloud Optimized GeoTIFF, with overviews that are means.

    Parameters
    ----------
    values
        Of each cell, shape (rows, columns); NaN where there is none, and written as nodata.
    name
        Of the band.

    Raises
    ------
    ValueError
        If the image has no transform.
    StoreError
        If the file cannot be written; what stood there before stays.
    """
    from rasterio.io import MemoryFile

    path = Path(path)
    with MemoryFile() as memory:
        with _cog(memory, values, registration, nodata=np.nan, overviews="average") as raster:
            raster.set_band_description(1, name)
        with writing(path):
            write_file(path, memory.getbuffer())


@contextmanager
def _cog(
    memory: Any,
    values: NDArray[Any],
    registration: Registration,
    *,
    nodata: float,
    overviews: str,
) -> Iterator[Any]:
    """Write values of cells to a file in memory, and lend it for what else it says."""
    import rasterio

    if registration.cell_transform is None:
        raise ValueError("a GeoTIFF needs a transform to place it with")
    height, width = values.shape
    with memory.open(
        driver="COG",
        height=height,
        width=width,
        count=1,
        dtype=values.dtype,
        nodata=nodata,
        crs=registration.crs,
        transform=rasterio.Affine(*registration.cell_transform),
        compress="DEFLATE",
        overview_resampling=overviews,
    ) as raster:
        raster.write(values, 1)
        yield raster


def category_names(names: Sequence[str]) -> bytes:
    """Return GDAL's auxiliary metadata with the name of every value."""
    dataset = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(dataset, "PAMRasterBand", band="1")
    categories = ElementTree.SubElement(band, "CategoryNames")
    for name in ("background", *names):
        ElementTree.SubElement(categories, "Category").text = name
    xml: bytes = ElementTree.tostring(dataset, encoding="utf-8")
    return xml
