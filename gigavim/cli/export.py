"""Hand results to other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gigavim.cli.options import Debug
from gigavim.cli.outcome import or_one_line


class Format(StrEnum):
    """What other programs read."""

    geojson = "geojson"
    geoparquet = "geoparquet"
    geotiff = "geotiff"
    h5_trident = "h5-trident"
    h5_clam = "h5-clam"
    h5_stamp = "h5-stamp"
    anndata = "anndata"
    spatialdata = "spatialdata"
    png = "png"
    csv = "csv"
    ome_tiff = "ome-tiff"
    stac = "stac"
    html = "html"


class Objects(StrEnum):
    """What GeoJSON is made of."""

    regions = "regions"
    tiles = "tiles"


def export(
    store: Annotated[Path, typer.Argument(help="A finished NAME.gigavim.zarr.")],
    to: Annotated[Format, typer.Option(help="For which program.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File or folder; beside the store if not.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Which class map; by default the one that says most.")
    ] = None,
    objects: Annotated[
        Objects, typer.Option(help="GeoJSON: regions of a class, or each patch.")
    ] = Objects.regions,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    debug: Debug = False,
) -> None:
    """Write a result for another program.

    QuPath reads geojson; QGIS geotiff and geoparquet; scanpy anndata; LazySlide spatialdata;
    Bio-Formats and Fiji ome-tiff.
    """
    from gigavim.pipelines import export as exports

    print(
        or_one_line(
            lambda: exports.export(
                store, to.value, output, force=force, head=head, objects=objects.value
            ),
            debug=debug,
        )
    )
