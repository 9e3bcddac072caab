"""Results for other programs, one command for all formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from gigavim.errors import StoreError
from gigavim.exports.anndata import write_anndata
from gigavim.exports.csv import write_csv
from gigavim.exports.geojson import Objects, write_geojson
from gigavim.exports.geoparquet import write_geoparquet
from gigavim.exports.geotiff import write_geotiff
from gigavim.exports.hdf5 import write_clam, write_stamp, write_trident
from gigavim.exports.ometiff import write_ometiff
from gigavim.exports.place import new_path
from gigavim.exports.png import write_png
from gigavim.exports.result import Result
from gigavim.exports.spatialdata import write_spatialdata
from gigavim.exports.stac import write_stac
from gigavim.views.html import write_report


def _write_html(result: Result, path: Path) -> None:
    with new_path(path) as partial:
        write_report(result.store.path, partial)


OF_A_MAP: Mapping[str, tuple[str, Callable[..., None]]] = {
    "geojson": (".{head}.geojson", write_geojson),
    "geoparquet": (".{head}.parquet", write_geoparquet),
    "geotiff": (".{head}.tif", write_geotiff),
    "png": (".{head}.png", write_png),
    "csv": (".tokens.csv", write_csv),
    "ome-tiff": (".{head}.ome.tif", write_ometiff),
    "stac": (".{head}.json", write_stac),
    "spatialdata": (".spatialdata.zarr", write_spatialdata),
}
"""What a format's file is called after the image's name, and what writes it from a class map."""
OF_ALL: Mapping[str, tuple[str, Callable[[Result, Path], None]]] = {
    "h5-trident": (".trident.h5", write_trident),
    "h5-clam": (".clam.h5", write_clam),
    "h5-stamp": (".stamp.h5", write_stamp),
    "anndata": (".h5ad", write_anndata),
    "html": (".html", _write_html),
}
"""The same of formats that take no class map, or all of them."""
FORMATS = (*OF_A_MAP, *OF_ALL)


def export(
    store_path: str | Path,
    to: str,
    output: str | Path | None = None,
    *,
    force: bool = False,
    head: str | None = None,
    objects: Objects = "regions",
) -> Path:
    """Write a finished result for another program.

    Parameters
    ----------
    to
        One of `FORMATS`.
    output
        The file, or an existing folder for it; beside the store if None.
    force
        Replace what is there.
    head
        Which class map; the one that says most if None.
    objects
        What GeoJSON has: ``regions`` of a class, or ``tiles``, a square for each patch.

    Returns
    -------
    path
        Of what was written.

    Raises
    ------
    StoreError
        If the result is not complete, has no such class map, or the file is there already or
        cannot be written.
    GigavimError
        If the format cannot hold this image, or its library is not installed.
    """
    if to not in FORMATS:
        raise ValueError(f"there is no format {to!r}; there are {', '.join(FORMATS)}")
    result = Result.open(store_path)
    suffix = (OF_A_MAP[to] if to in OF_A_MAP else OF_ALL[to])[0]
    name = f"{result.name}{suffix.format(head=head or result.heads()[0])}"
    path = result.store.path.with_name(name) if output is None else Path(output)
    if path.is_dir() and output is not None and path.suffix != Path(name).suffix:
        path = path / name
    if path.exists() and not force:
        raise StoreError(f"{path} is there already; replace it with --force, or name another file")
    if to == "geojson":
        write_geojson(result, path, head=head, objects=objects)
    elif to in OF_A_MAP:
        OF_A_MAP[to][1](result, path, head=head)
    else:
        OF_ALL[to][1](result, path)
    return path
