"""GeoParquet, written part by part."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.exports.place import library

EXTRA = "tables"
Columns = Mapping[str, NDArray[Any]]


def write_parquet(
    path: Path, parts: Iterable[tuple[NDArray[np.object_], Columns]], crs: str | None
) -> None:
    """Write polygons and what is known of each, after GeoParquet 1.1.

    Parameters
    ----------
    parts
        Polygons and the columns beside them; one part is held at a time. At least one.
    crs
        As WKT; None for pixels or micrometres, which are on no Earth.
    """
    import shapely

    pyarrow, parquet = library("pyarrow", EXTRA), library("pyarrow.parquet", EXTRA)
    geometry = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": None if crs is None else _projjson(crs),
    }
    about = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    writer = None
    try:
        for polygons, columns in parts:
            table = pyarrow.table({**columns, "geometry": shapely.to_wkb(polygons)})
            if writer is None:
                schema = table.schema.with_metadata({"geo": json.dumps(about)})
                writer = parquet.ParquetWriter(path, schema, compression="zstd")
            writer.write_table(table.replace_schema_metadata(schema.metadata))
    finally:
        if writer is not None:
            writer.close()


def _projjson(crs: str) -> dict[str, Any]:
    """Return a CRS as GeoParquet wants it."""
    import rasterio.crs

    described: dict[str, Any] = rasterio.crs.CRS.from_wkt(crs).to_dict(projjson=True)
    return described
