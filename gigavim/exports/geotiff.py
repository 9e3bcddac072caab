"""A class map of a scene as a Cloud Optimized GeoTIFF."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gigavim.errors import GigavimError
from gigavim.exports.place import new_path
from gigavim.exports.result import Result
from gigavim.views.geotiff import category_names

_SIDE = 4096
"""Of the windows in which a map is copied: a file of the store each."""


def write_geotiff(result: Result, path: Path, *, head: str | None = None) -> None:
    """Write a class map with its CRS, colour table, nodata and overviews.

    Class names stand in ``<path>.aux.xml``, where GDAL keeps them.

    Raises
    ------
    GigavimError
        If the image has no CRS: a slide's place is not on Earth.
    """
    import rasterio
    from rasterio.shutil import copy

    layer = result.layer(head)
    place = layer.registration
    if place.crs is None or place.cell_transform is None:
        raise GigavimError(
            f"{result.store.path}: its image has no CRS to place a GeoTIFF with; "
            "--to ome-tiff writes the map with the size of its pixels"
        )
    rows, columns = layer.shape
    opaque = {value: (*colour, 255) for value, colour in enumerate(layer.colours, start=1)}
    with new_path(path) as partial, TemporaryDirectory(dir=path.parent) as folder:
        # A COG holds its overviews first, so it is made from a file that is whole.
        tiled = Path(folder) / "map.tif"
        with rasterio.open(
            tiled,
            "w",
            driver="GTiff",
            height=rows,
            width=columns,
            count=1,
            dtype="uint8",
            nodata=0,
            crs=place.crs,
            transform=rasterio.Affine(*place.cell_transform),
            tiled=True,
            compress="DEFLATE",
            bigtiff="IF_SAFER",
        ) as raster:
            raster.write_colormap(1, {0: (0, 0, 0, 0)} | opaque)
            raster.set_band_description(1, layer.name)
            raster.update_tags(**_tags(result))
            for row in range(0, rows, _SIDE):
                for column in range(0, columns, _SIDE):
                    part = np.asarray(layer.levels[0][row : row + _SIDE, column : column + _SIDE])
                    window = rasterio.windows.Window(column, row, part.shape[1], part.shape[0])
                    raster.write(part, 1, window=window)
        copy(
            tiled,
            partial,
            driver="COG",
            compress="DEFLATE",
            overview_resampling="mode",
            bigtiff="IF_SAFER",
        )
    with new_path(path.with_name(f"{path.name}.aux.xml")) as partial:
        partial.write_bytes(category_names(layer.names))


def _tags(result: Result) -> dict[str, str]:
    """Say where the map comes from."""
    model = result.about["model"]
    return {
        "GIGAVIM_VERSION": str(result.about["version"]),
        "MODEL": result.model,
        "MODEL_SHA256": str(model["weights_sha256"]),
        "INPUT": Path(result.about["source"]["uri"]).name,
    }
