"""Features as AnnData: for scanpy and squidpy, and as the table of SpatialData.

Written after the format's specification (https://anndata.readthedocs.io, "On-disk format") into
HDF5 or Zarr alike, since anndata would want all features in memory at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.exports.place import library, new_path
from gigavim.exports.result import Result, Table

_ROW_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Categorical:
    """A column of few different strings."""

    codes: NDArray[np.integer[Any]]
    """Which category each row has; -1 for none."""
    categories: Sequence[str]


def write_anndata(result: Result, path: Path) -> None:
    """Write an ``.h5ad``: an observation for each patch, or tile, that could be read.

    ``X`` has its feature, ``obs`` its corner in level-0 pixels (``x``, ``y``), its place on the
    grid (``array_row``, ``array_col``) and its class, ``obsm["spatial"]`` its centre in level-0
    pixels as squidpy wants it, and ``obsm["probs"]`` the probabilities of the classes.
    """
    h5py = library("h5py", "tables")
    with new_path(path) as partial, h5py.File(partial, "w") as file:
        write_table(file, result, result.table(), {}, {})


def write_table(
    group: Any,
    result: Result,
    table: Table,
    columns: Mapping[str, NDArray[Any] | Categorical],
    notes: Mapping[str, Any],
) -> None:
    """Write an AnnData into a group of HDF5 or Zarr.

    Parameters
    ----------
    columns
        To have in ``obs`` besides.
    notes
        To have in ``uns`` besides.
    """
    parts = list(table.parts())
    coords = np.concatenate([part.coords for part in parts])
    index = np.concatenate([part.index for part in parts])
    probs = [part.probs for part in parts if part.probs is not None]
    height, width = table.side_level0
    obs: dict[str, Any] = {
        "x": coords[:, 0],
        "y": coords[:, 1],
        "array_row": index[:, 0],
        "array_col": index[:, 1],
        **columns,
    }
    obsm: dict[str, Any] = {"spatial": coords + np.array([width, height]) / 2}
    uns: dict[str, Any] = {"gigavim": _provenance(result), **notes}
    layer, classes = result.layer(), None
    if probs:
        obsm["probs"] = np.concatenate(probs)
        classes = obsm["probs"].argmax(1)
        uns["probs_classes"] = table.classes
    elif table.group == "tokens" and layer.shape == result.grid_shape:
        labels = np.asarray(layer.levels[0][...])[index[:, 0], index[:, 1]]
        classes = labels.astype(np.int16) - 1
    if classes is not None:
        obs[layer.name] = Categorical(classes.astype(np.int16), layer.names)
        uns[f"{layer.name}_colors"] = ["#" + bytes(colour).hex() for colour in layer.colours]
    _mark(group, "anndata", "0.1.0")
    _write_features(group, table)
    _write_frame(group.create_group("obs"), len(coords), obs)
    _write_frame(group.create_group("var"), table.width, {})
    for name, values in (("obsm", obsm), ("uns", uns), *((name, {}) for name in _EMPTY)):
        _write(group, name, values)


_EMPTY = ("layers", "varm", "obsp", "varp")


def _write_features(group: Any, table: Table) -> None:
    """Write ``X``, a part at a time."""
    count = table.readable
    about = {
        "shape": (count, table.width),
        "chunks": (max(1, min(count, _ROW_CHUNK)), table.width),
        "dtype": np.float32,
    }
    if hasattr(group, "create_array"):
        # Numbers that a network made do not compress.
        written = group.create_array("X", compressors=None, **about)
    else:
        written = group.create_dataset("X", **about)
    _mark(written, "array", "0.2.0")
    start = 0
    for rows in table.features():
        written[start : start + len(rows)] = rows.astype(np.float32)
        start += len(rows)


def _write_frame(group: Any, rows: int, columns: Mapping[str, Any]) -> None:
    """Write a data frame whose rows are called 0, 1, ..."""
    _mark(group, "dataframe", "0.2.0")
    group.attrs.update({"_index": "_index", "column-order": list(columns)})
    _write(group, "_index", np.arange(rows).astype(str).tolist())
    for name, values in columns.items():
        _write(group, name, values)


def _write(group: Any, name: str, values: Any) -> None:
    """Write numbers, strings, categories or a dictionary of such."""
    if isinstance(values, Mapping):
        inner = group.create_group(name)
        _mark(inner, "dict", "0.1.0")
        for key, value in values.items():
            _write(inner, key, value)
    elif isinstance(values, Categorical):
        inner = group.create_group(name)
        _mark(inner, "categorical", "0.2.0")
        inner.attrs["ordered"] = False
        _write(inner, "categories", list(values.categories))
        _write(inner, "codes", values.codes)
    elif isinstance(values, np.ndarray):
        _mark(_create(group, name, values), "array", "0.2.0")
    elif isinstance(values, (float, int)):
        _mark(_create(group, name, np.array(values)), "numeric-scalar", "0.2.0")
    else:
        kind = "string" if isinstance(values, str) else "string-array"
        _mark(_create(group, name, np.array(values, object)), kind, "0.2.0")


def _create(group: Any, name: str, values: NDArray[Any]) -> Any:
    """Create an array of numbers, or of strings as objects."""
    if hasattr(group, "create_array"):
        dtype = "string" if values.dtype == object else values.dtype
        array = group.create_array(name, shape=values.shape, dtype=dtype)
        array[...] = values if values.ndim or values.dtype != object else values.item()
        return array
    if values.dtype == object:
        text = library("h5py", "tables").string_dtype()
        return group.create_dataset(name, data=values, dtype=text)
    return group.create_dataset(name, data=values)


def _mark(element: Any, kind: str, version: str) -> None:
    """Say what an element is, as every element does."""
    element.attrs.update({"encoding-type": kind, "encoding-version": version})


def _provenance(result: Result) -> dict[str, Any]:
    """Say where the features come from."""
    about = result.about
    return {
        "version": about["version"],
        "model": result.model,
        "weights_sha256": about["model"]["weights_sha256"],
        "image": Path(about["source"]["uri"]).name,
        "spacing": about["spacing"]["achieved"][0],
        "unit": about["spacing"]["unit"],
    }
