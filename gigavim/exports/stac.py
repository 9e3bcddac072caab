"""A STAC item for a class map of a scene: the raster, its classes, and the model."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from gigavim.errors import GigavimError
from gigavim.exports.geotiff import write_geotiff
from gigavim.exports.place import new_path
from gigavim.exports.regions import LONGITUDE_LATITUDE, to_crs
from gigavim.exports.result import Layer, Result
from gigavim.sources.remote import is_remote

_EXTENSIONS = (
    "projection/v2.0.0",
    "raster/v1.1.0",
    "classification/v2.0.0",
    "processing/v1.2.0",
    "file/v2.1.0",
    "mlm/v1.4.0",
)
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
# Bytes of which a multihash begins: SHA-256, of 32 bytes.
_SHA256 = "1220"
_NONE = {"value": 0, "name": "none", "description": "not classified", "nodata": True}


def write_stac(result: Result, path: Path, *, head: str | None = None) -> None:
    """Write an item that describes the GeoTIFF beside it, which is written too if it is not there.

    Its ``datetime`` is that of the run, since few images say when they were taken. The model is an
    asset without an address, named by the hash of its weights.

    Raises
    ------
    GigavimError
        If the image has no CRS.
    """
    layer = result.layer(head)
    geotiff = path.with_suffix(".tif")
    if layer.registration.crs is None:
        raise GigavimError(
            f"{result.store.path}: its image has no CRS, and a STAC item lies on Earth"
        )
    if not geotiff.exists():
        write_geotiff(result, geotiff, head=head)
    item = _item(result, layer, geotiff, path.parent)
    with new_path(path) as partial:
        partial.write_text(json.dumps(item, indent=2, ensure_ascii=False), encoding="utf-8")


def _item(result: Result, layer: Layer, geotiff: Path, folder: Path) -> dict[str, Any]:
    """Describe a class map."""
    import shapely

    about = result.about
    rows, columns = layer.shape
    frame = np.array([shapely.segmentize(shapely.box(0, 0, columns, rows), max(rows, columns) / 8)])
    (footprint,) = shapely.orient_polygons(to_crs(frame, layer.registration, LONGITUDE_LATITUDE))
    # What the model takes; a band of an item's properties would be one of its assets'.
    bands = [{"name": name, "data_type": "float32"} for name in about["source"]["bands"]]
    store = os.path.relpath(result.store.path, folder)
    uri = about["source"]["uri"]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [
            f"https://stac-extensions.github.io/{name}/schema.json" for name in _EXTENSIONS
        ],
        "id": f"{result.name}-{layer.name}",
        "geometry": shapely.geometry.mapping(footprint),
        "bbox": list(footprint.bounds),
        "properties": {
            "title": f"{layer.name} of {Path(about['source']['uri']).name} by {result.model}",
            "datetime": about["writer"]["started"].replace("+00:00", "Z"),
            **_projection(layer),
            "processing:software": {"gigavim": about["version"]},
            **_model(result, layer),
        },
        "links": [{"rel": "derived_from", "href": uri if is_remote(uri) else Path(uri).as_uri()}],
        "assets": {
            "classes": {
                "href": os.path.relpath(geotiff, folder),
                "type": _COG,
                "title": layer.name,
                "roles": ["data", "classification"],
                "raster:bands": [{"data_type": "uint8", "nodata": 0, "sampling": "area"}],
                "classification:classes": [_NONE, *_classes(layer)],
            },
            "store": {
                "href": store,
                "type": "application/vnd.zarr; version=3",
                "title": "features, probabilities and maps",
                "roles": ["data"],
            },
            "model": {
                "href": f"urn:sha256:{about['model']['weights_sha256']}",
                "type": "application/octet-stream; application=safetensors",
                "title": result.model,
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": "safetensors.torch.save_file",
                "raster:bands": bands,
                "file:checksum": _SHA256 + about["model"]["weights_sha256"],
            },
        },
    }


def _projection(layer: Layer) -> dict[str, Any]:
    """Say where the cells lie."""
    import rasterio.crs

    place = layer.registration
    assert place.cell_transform is not None  # it has a CRS
    crs = rasterio.crs.CRS.from_wkt(place.crs)
    authority = crs.to_authority()
    code = ":".join(authority) if authority else None
    return {
        "proj:code": code,
        **({} if code else {"proj:wkt2": crs.to_wkt(version="WKT2_2019")}),
        "proj:shape": list(layer.shape),
        "proj:transform": list(place.cell_transform),
    }


def _classes(layer: Layer) -> list[dict[str, Any]]:
    """Describe what values mean."""
    described = enumerate(zip(layer.names, layer.colours, strict=True), start=1)
    return [
        {
            "value": value,
            "name": re.sub(r"[^\w-]+", "_", name, flags=re.ASCII),
            "description": name,
            "color_hint": bytes(colour).hex().upper(),
        }
        for value, (name, colour) in described
    ]


def _model(result: Result, layer: Layer) -> dict[str, Any]:
    """Describe the model, in the words of the machine learning model extension."""
    bands = result.about["source"]["bands"]
    task = "semantic-segmentation"
    return {
        "mlm:name": re.sub(r"[^\w.-]+", "_", f"gigavim {result.model}", flags=re.ASCII),
        "mlm:architecture": "Vision Mamba",
        "mlm:framework": "PyTorch",
        "mlm:tasks": [task],
        "mlm:input": [
            {
                "name": "scene",
                "bands": bands,
                "input": {
                    "shape": [1, len(bands), -1, -1],
                    "dim_order": ["batch", "bands", "height", "width"],
                    "data_type": "float32",
                },
            }
        ],
        "mlm:output": [
            {
                "name": layer.name,
                "tasks": [task],
                "result": {
                    "shape": [1, *layer.shape],
                    "dim_order": ["batch", "height", "width"],
                    "data_type": "uint8",
                },
                "classification:classes": _classes(layer),
            }
        ],
    }
