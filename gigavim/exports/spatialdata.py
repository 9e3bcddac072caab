"""SpatialData, with the names that LazySlide uses.

Written after the format's 0.2 container (spatialdata 0.7) rather than by spatialdata itself, which
cannot be installed beside the Dask that runs need.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from gigavim.exports.anndata import Categorical, write_table
from gigavim.exports.place import new_path
from gigavim.exports.regions import Regions, regions, to_level0
from gigavim.exports.result import Layer, Result, Table
from gigavim.exports.tables import write_parquet

_AXES = ("x", "y")
_SIDE = 4096
"""Of the windows in which a map is copied."""


def write_spatialdata(result: Result, path: Path, *, head: str | None = None) -> None:
    """Write shapes ``tiles`` and ``tissues``, table ``<model>_tiles``, labels ``<head>_map``.

    The coordinate system ``global`` has level-0 pixels, ``micrometers`` those of a slide. A row of
    the table is a tile with its feature; in whole mode a patch is a tile.
    """
    table, layer = result.table(), result.layer(head)
    tissue = result.layer("foreground")
    tissues = regions(result, tissue)
    with new_path(path) as partial:
        root = zarr.open_group(partial, mode="w", zarr_format=3)
        root.attrs.update(
            spatialdata_attrs={"version": "0.2", "spatialdata_software_version": "0.7.3"},
            tile_spec={"tiles": _tile_spec(result, table)},
        )
        shapes = root.create_group("shapes")
        for name in ("tissues", "tiles"):
            _describe_shapes(result, shapes.create_group(name))
        _write_table(result, root.create_group("tables"), table)
        _write_labels(root.create_group("labels"), layer)
        outlines = to_level0(tissues.polygons, tissue.registration)
        found = [(outlines, {"tissue_id": np.arange(len(outlines))})]
        write_parquet(partial / "shapes/tissues/shapes.parquet", found, None)
        write_parquet(partial / "shapes/tiles/shapes.parquet", _tiles(table, tissues), None)


def _tiles(
    table: Table, tissues: Regions
) -> Iterator[tuple[NDArray[np.object_], dict[str, NDArray[Any]]]]:
    """Yield the squares of tiles and what LazySlide knows of each."""
    import shapely

    height, width = table.side_level0
    start = 0
    for part in table.parts():
        x, y = part.coords.T
        columns = {
            "tile_id": np.arange(start, start + len(x)),
            "x": x,
            "y": y,
            "tissue_id": tissues.numbers[part.index[:, 0], part.index[:, 1]] - 1,
        }
        yield shapely.box(x, y, x + width, y + height), columns
        start += len(x)


def _describe_shapes(result: Result, group: zarr.Group) -> None:
    """Say that polygons are in level-0 pixels."""
    group.attrs.update(
        {
            "encoding-type": "ngff:shapes",
            "axes": list(_AXES),
            "coordinateTransformations": _transformations(result),
            "spatialdata_attrs": {"version": "0.3"},
        }
    )


def _write_table(result: Result, tables: zarr.Group, table: Table) -> None:
    """Write features, tied to the tiles."""
    keys = {"region": "tiles", "region_key": "library_id", "instance_key": "tile_id"}
    count = table.readable
    columns: dict[str, NDArray[Any] | Categorical] = {
        "tile_id": np.arange(count),
        "library_id": Categorical(np.zeros(count, np.int8), ("tiles",)),
    }
    group = tables.create_group(re.sub(r"[^\w.-]", "_", f"{result.model}_tiles"))
    write_table(group, result, table, columns, {"spatialdata_attrs": keys})
    group.attrs.update(
        {"spatialdata-encoding-type": "ngff:regions_table", **keys, "version": "0.2"}
    )


def _write_labels(labels: zarr.Group, layer: Layer) -> None:
    """Copy the pyramid of a class map."""
    # LazySlide takes a plain "nuclei" for the features of a model of that name.
    name = f"{layer.name}_map"
    group = labels.create_group(name)
    datasets = []
    for number, level in enumerate(layer.levels):
        copied = group.create_array(
            f"s{number}",
            shape=level.shape,
            dtype=level.dtype,
            chunks=tuple(min(side, 512) for side in level.shape),
            dimension_names=("y", "x"),
        )
        for row in range(0, level.shape[0], _SIDE):
            for column in range(0, level.shape[1], _SIDE):
                there = np.s_[row : row + _SIDE, column : column + _SIDE]
                copied[there] = level[there]
        scale = {"type": "scale", "scale": [2.0**number, 2.0**number]}
        datasets.append({"path": f"s{number}", "coordinateTransformations": [scale]})
    place = layer.registration
    # Pixels begin at whole numbers here, other than in NGFF.
    axes = ("y", "x")
    to_level0 = {
        "type": "sequence",
        "transformations": [
            _between(axes, "global", {"type": "scale", "scale": [place.cell_y, place.cell_x]}),
            _between(
                axes,
                "global",
                {"type": "translation", "translation": [place.corner_y, place.corner_x]},
            ),
        ],
    }
    multiscale: Any = {
        "name": name,
        "datasets": datasets,
        "axes": [{"name": axis, "type": "space"} for axis in axes],
        "coordinateTransformations": [_between(axes, "global", to_level0)],
    }
    image_label: Any = {
        "colors": [
            {"label-value": value, "rgba": [*colour, 255]}
            for value, colour in enumerate(layer.colours, start=1)
        ],
        "properties": [
            {"label-value": value, "class": text} for value, text in enumerate(layer.names, start=1)
        ],
    }
    group.attrs.update(
        ome={
            "version": "0.5-dev-spatialdata",
            "multiscales": [multiscale],
            "image-label": image_label,
        },
        spatialdata_attrs={"version": "0.3"},
    )
    labels.attrs["ome"] = {"labels": [name]}


def _transformations(result: Result) -> Any:
    """Return where polygons in level-0 pixels lie."""
    found = [_between(_AXES, "global", {"type": "identity"})]
    if result.is_slide:
        size = {"type": "scale", "scale": [result.spacing.x, result.spacing.y]}
        found.append(_between(_AXES, "micrometers", size))
    return found


def _between(axes: tuple[str, ...], system: str, how: dict[str, Any]) -> dict[str, Any]:
    """Complete a transformation by what it goes from and to."""
    described = [{"name": axis, "type": "space", "unit": "unit"} for axis in axes]
    return {
        **how,
        "input": {"name": "".join(axes), "axes": described},
        "output": {"name": system, "axes": described},
    }


def _tile_spec(result: Result, table: Table) -> dict[str, Any]:
    """Describe the tiles as wsidata's ``TileSpec`` does."""
    spacing = result.about["spacing"]
    stride = table.side_px - table.overlap_px
    return {
        "height": table.side_px,
        "width": table.side_px,
        "stride_height": stride,
        "stride_width": stride,
        "mpp": spacing["achieved"][0] if result.is_slide else None,
        "ops_level": 0,
        "ops_downsample": table.side_level0[0] / table.side_px,
        "base_level": 0,
        "base_downsample": table.side_level0[0] / table.side_px,
        "tissue_name": "tissues",
    }
