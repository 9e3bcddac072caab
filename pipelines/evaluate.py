"""How right a class map of a scene is, where somebody knows what is on the ground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from gigavim.errors import GigavimError
from gigavim.exports.result import Layer, Result
from gigavim.pipelines.ground_truth import GroundTruth, Labelled, read_truth
from gigavim.pipelines.train.figures import figures_of_counts
from gigavim.sources.pixel_grid import PixelGrid

OTHERS = "*"
"""In place of the name of a class: all that are not named."""


def is_result(path: str | Path) -> bool:
    """Whether a path is a store, and not a model."""
    return (Path(path) / "zarr.json").is_file()


def evaluate_result(
    store: str | Path,
    labels: str | Path,
    *,
    head: str | None = None,
    values: Mapping[str, int] | None = None,
    column: str | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Compare a class map with labels, each labelled pixel with the cell that its centre is in.

    Parameters
    ----------
    store
        A finished one.
    labels, values, column
        As `read_truth` takes them.
    head
        The class map; the one that says most if None.
    names
        What classes of the map are called in the labels; ``*`` stands for those that are not named.

    Returns
    -------
    figures
        As JSON takes it: those of `Figures`, and how many labelled ``pixels`` were compared and how
        many lie where the map says nothing (``unmapped``).

    Raises
    ------
    GigavimError
        If store or labels are at fault, do not lie on the same ground, or know no class alike.
    """
    result = Result.open(store)
    layer = result.layer(head)
    truth = read_truth(Path(labels), _pixels(result, layer), values, column)
    of_map = _renamed(layer.names, names or {}, truth.classes, layer.name)
    classes = tuple(dict.fromkeys([*truth.classes, *of_map]))
    to_class = np.array([-1, *(classes.index(name) for name in of_map)])
    cells = np.asarray(layer.levels[0][...])
    k, unmapped = len(classes), 0
    counts = np.zeros((truth.groups, k, k), np.int64)
    for part in truth.parts():
        found = to_class[_under(part, cells, layer, truth)]
        known = found >= 0
        unmapped += int((~known).sum())
        np.add.at(counts, (part.groups[known], part.labels[known], found[known]), 1)
    if not counts.any():
        raise GigavimError(f"{labels}: none of its labels lies where {store} has a map")
    figures = figures_of_counts(counts[counts.any((1, 2))], classes).as_dict()
    pixels = figures.pop("images")
    return {
        "result": str(store), "labels": str(labels), "head": layer.name,
        "pixels": pixels, "unmapped": unmapped, **figures,
    }  # fmt: skip


def _pixels(result: Result, layer: Layer) -> PixelGrid:
    """Return level 0 of the image."""
    place = layer.registration
    height, width = result.size
    crs = None if place.crs is None else CRS.from_wkt(place.crs)
    return PixelGrid(crs, Affine(*(place.transform or (1, 0, 0, 0, 1, 0))), height, width)


def _renamed(
    of_map: Sequence[str], names: Mapping[str, str], known: Sequence[str], head: str
) -> list[str]:
    """Return what the classes of a map are called in the labels."""
    strange = sorted(set(names) - {*of_map, OTHERS})
    if strange:
        raise GigavimError(
            f"the map {head} has no class {', '.join(strange)}; it has {', '.join(of_map)}"
        )
    called = [names.get(name, names.get(OTHERS, name)) for name in of_map]
    if not set(called) & set(known):
        raise GigavimError(
            f"the map {head} has {', '.join(of_map)}, and the labels {', '.join(known)}; say which "
            f"is which with --as, as in --as '{of_map[0]}={known[0]},*={known[-1]}'"
        )
    return called


def _under(
    part: Labelled, cells: NDArray[np.uint8], layer: Layer, truth: GroundTruth
) -> NDArray[np.uint8]:
    """Return the class of the cell that each pixel's centre is in; 0 where there is none."""
    place, crs = layer.registration, truth.grid.crs
    xs, ys = part.xs, part.ys
    if crs is not None and place.crs is not None and crs != CRS.from_wkt(place.crs):
        moved = transform(crs, CRS.from_wkt(place.crs), xs, ys)
        xs, ys = (np.asarray(each, np.float64) for each in moved)
    to_level0 = ~Affine(*(place.transform or (1, 0, 0, 0, 1, 0)))
    x, y = to_level0 @ (xs, ys)
    column = np.floor((x - place.corner_x) / place.cell_x)
    row = np.floor((y - place.corner_y) / place.cell_y)
    height, width = cells.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    found = np.zeros(len(xs), np.uint8)
    found[inside] = cells[row[inside].astype(np.int64), column[inside].astype(np.int64)]
    return found
