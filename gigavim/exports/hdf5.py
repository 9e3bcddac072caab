"""Features as the programs for slides read them: CLAM, TRIDENT and STAMP.

Layouts after CLAM's ``extract_features_fp.py``, TRIDENT's ``trident/IO.py`` and STAMP's
``preprocessing/__init__.py``. What could not be read is left out, since those programs take every
row for a patch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gigavim.errors import GigavimError
from gigavim.exports.place import library, new_path
from gigavim.exports.result import Result, Table

_EXTRA = "tables"
_ROW_CHUNK = 256
"""Rows of features that HDF5 stores together. Those programs store each by itself, which their
readers do not ask for and which makes a million of them slow to read."""


def write_trident(result: Result, path: Path) -> None:
    """Write ``features`` (N, D) and ``coords`` (N, 2), level-0 pixels, as TRIDENT does.

    TITAN and others read the side of a patch from ``coords.attrs["patch_size_level0"]``.
    """
    table = result.table()
    with _new_h5(path) as file:
        _write_table(file, table, "features", np.float32, np.int64)
        file["coords"].attrs.update(_trident_attributes(result, table, path))
        file["features"].attrs.update(name=result.name, encoder=f"gigavim_{result.model}")


def write_clam(result: Result, path: Path) -> None:
    """Write ``features`` (N, D) and ``coords`` (N, 2), level-0 pixels, as CLAM does."""
    with _new_h5(path) as file:
        _write_table(file, result.table(), "features", np.float32, np.int32)
        level = {"patch_level": 0, "patch_size": round(result.table().side_level0[0])}
        file["coords"].attrs.update(level)


def write_stamp(result: Result, path: Path) -> None:
    """Write ``feats`` (N, D) and ``coords`` (N, 2), in µm, as STAMP 2 does.

    Raises
    ------
    GigavimError
        If the image is no slide.
    """
    if not result.is_slide:
        raise GigavimError(
            f"{result.store.path}: STAMP counts in µm, and its image is a scene; "
            "--to h5-clam or --to geoparquet write features and places of scenes"
        )
    table = result.table()
    with _new_h5(path) as file:
        _write_table(file, table, "feats", np.float16, np.float32)
        file["coords"][...] *= np.array([result.spacing.x, result.spacing.y], np.float32)
        file.attrs.update(
            stamp_version="2.1.0",
            extractor=f"gigavim-{result.model}",
            unit="um",
            tile_size_um=table.side_level0[0] * result.spacing.y,
            tile_size_px=table.side_px,
            feat_type="tile",
        )


@contextmanager
def _new_h5(path: Path) -> Iterator[Any]:
    """Open a new file."""
    h5py = library("h5py", _EXTRA)
    with new_path(path) as partial, h5py.File(partial, "w") as file:
        yield file


def _write_table(
    file: Any, table: Table, name: str, feature_dtype: DTypeLike, coord_dtype: DTypeLike
) -> None:
    """Write features and coordinates, both to be appended to as those programs do."""
    count = table.readable
    for dataset, width, dtype, parts in (
        (name, table.width, feature_dtype, table.features()),
        ("coords", 2, coord_dtype, (part.coords for part in table.parts())),
    ):
        written = file.create_dataset(
            dataset,
            (count, width),
            dtype,
            maxshape=(None, width),
            chunks=(max(1, min(count, _ROW_CHUNK)), width),
        )
        start = 0
        for rows in parts:
            written[start : start + len(rows)] = rows
            start += len(rows)


def _trident_attributes(result: Result, table: Table, path: Path) -> dict[str, Any]:
    """Describe the coordinates; magnifications are of slides alone, 10 µm by the pixel's side."""
    height, width = result.size
    attributes: dict[str, Any] = {
        "patch_size": table.side_px,
        "patch_size_level0": round(table.side_level0[0]),
        "overlap": table.overlap_px,
        "name": result.name,
        "savetodir": str(path.parent),
        "level0_width": width,
        "level0_height": height,
    }
    if result.is_slide:
        own, seen = result.spacing.y, result.about["spacing"]["achieved"][0]
        attributes |= {
            "level0_magnification": round(10 / own, 3),
            "target_magnification": round(10 / seen, 3),
        }
    return attributes
