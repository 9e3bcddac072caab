"""Tables that anything reads."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from gigavim.area import cell_areas
from gigavim.exports.place import new_path
from gigavim.exports.result import Layer, Result

_ROWS = 4096
"""Rows of a map that are held at once."""


def write_csv(result: Result, path: Path, *, head: str | None = None) -> None:
    """Write a line for each patch that could be read, and beside it the areas of the classes.

    ``x`` and ``y`` are the patch's top-left corner in level-0 pixels, ``row`` and ``column`` its
    place on the grid. The areas are in ``<name>.areas.csv``.
    """
    layer = result.layer(head)
    labels = None
    if layer.shape == result.grid_shape:
        labels = np.asarray(layer.levels[0][...])
    table = result.patches()
    with new_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(
            ["x", "y", "row", "column", "class", *(f"prob_{name}" for name in table.classes)]
        )
        for part in table.parts():
            classes = [""] * len(part.index)
            if labels is not None:
                found = labels[part.index[:, 0], part.index[:, 1]]
                classes = [("", *layer.names)[class_] for class_ in found]
            columns = [*part.coords.T.tolist(), *part.index.T.tolist(), classes]
            if part.probs is not None:
                columns += [[f"{p:.4g}" for p in column] for column in part.probs.T]
            lines.writerows(zip(*columns, strict=True))
    with (
        new_path(path.with_name(f"{path.stem}.areas.csv")) as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        _write_areas(result, layer, csv.writer(file))


def _write_areas(result: Result, layer: Layer, lines: Any) -> None:
    """Write cells, share and area of each class."""
    rows = layer.shape[0]
    cells = cell_areas(layer.registration, rows, result.size[0])
    counts, areas = np.zeros(len(layer.names) + 1, np.int64), np.zeros(len(layer.names) + 1)
    for row in range(0, rows, _ROWS):
        labels = np.asarray(layer.levels[0][row : row + _ROWS])
        counts += np.bincount(labels.ravel(), minlength=len(counts))
        if cells.of_row is not None:
            weights = cells.of_row[row : row + _ROWS].repeat(labels.shape[1])
            areas += np.bincount(labels.ravel(), weights, len(areas))
    unit = {"mm²": "mm2", "km²": "km2", None: "unknown"}[cells.unit]
    lines.writerow(["class", "cells", "share", f"area_{unit}"])
    total = max(1, int(counts[1:].sum()))
    for name, count, area in zip(layer.names, counts[1:], areas[1:], strict=True):
        lines.writerow([name, count, f"{count / total:.6g}", f"{area:.6g}" if cells.unit else ""])
