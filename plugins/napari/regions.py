"""The places of a class that are worth a look, the most certain and largest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.plugins.napari.results import Results
from gigavim.plugins.napari.threshold import HeadMap, NucleiMap, short
from gigavim.plugins.napari.world import Affine, to_world

MOST = 1000
"""Regions that somebody might go through."""
LEAST_PATCHES = 4
"""To a side of a region at least: a smaller one is looked at in its surroundings."""
LEAST_DIAMETERS = 8
"""Of a nucleus that is looked at, to a side of its surroundings."""
FILLED = 0.4
"""Part of the view that a region fills when one goes there."""


@dataclass(frozen=True, slots=True)
class Region:
    """A place to look at, in the viewer's world."""

    y: float
    """Of its middle."""
    x: float
    height: float
    width: float
    words: str
    """What there is to say of it."""


def order_of(shown: HeadMap) -> str:
    """Say in which order `regions_of` returns the regions of a map."""
    if isinstance(shown, NucleiMap):
        return "those of the highest mean probability first"
    if shown.best is None:
        return "the largest first"
    return "those with the largest sum of probability first"


def regions_of(
    results: Results, head: str, shown: HeadMap, label_value: int, threshold: float
) -> list[Region]:
    """Return the regions of a class as it is shown, at most `MOST`.

    Parameters
    ----------
    label_value
        Of the class, from 1.
    """
    if isinstance(shown, NucleiMap):
        return _nuclei(results, head, shown, threshold)
    found = connected(shown.above(threshold) == label_value, shown.best)
    affine = results.affine(f"labels/{head}")
    areas = shown.areas
    of_row = areas.of_row if areas.of_row is not None else np.ones(len(shown.labels))
    regions = []
    for part in found:
        size = float(of_row[part.top : part.bottom] @ part.cells_of_row)
        words = f"{short(size)} {areas.unit or 'patches'}"
        if shown.best is not None:
            words += f", mean probability {part.total / part.cells:.2f}"
        middle = (part.top + part.bottom - 1) / 2, (part.left + part.right - 1) / 2
        sides = part.bottom - part.top, part.right - part.left
        regions.append(_placed(affine, middle, sides, words))
    return regions


@dataclass(frozen=True, slots=True)
class Connected:
    """Cells of a map that touch each other, be it at a corner."""

    top: int
    left: int
    bottom: int
    """One past the last row."""
    right: int
    cells: int
    total: float
    """Sum of the probabilities of its cells; their number where there are none."""
    cells_of_row: NDArray[np.int64]
    """How many are in each row, from the top."""


def connected(
    inside: NDArray[np.bool_], probability: NDArray[np.floating[Any]] | None
) -> list[Connected]:
    """Find connected regions, those with the largest sum of probability first, at most `MOST`.

    Parameters
    ----------
    inside
        Shape (rows, columns).
    probability
        Of each cell, finite inside; None counts cells.
    """
    from scipy.ndimage import find_objects
    from skimage.measure import label

    numbered = label(inside, connectivity=2)  # type: ignore[no-untyped-call]
    cells = np.bincount(numbered.ravel())[1:]
    weights = None if probability is None else np.where(inside, probability, 0).ravel()
    total = np.bincount(numbered.ravel(), weights)[1:]
    boxes = find_objects(numbered)
    regions = []
    for index in np.argsort(-total, kind="stable")[:MOST]:
        rows, columns = boxes[index]
        of_row = (numbered[rows, columns] == index + 1).sum(1)
        regions.append(
            Connected(
                rows.start, columns.start, rows.stop, columns.stop,
                int(cells[index]), float(total[index]), of_row,
            )
        )  # fmt: skip
    return regions


def _nuclei(results: Results, head: str, shown: NucleiMap, threshold: float) -> list[Region]:
    """Return nuclei, each a region."""
    order = np.argsort(-shown.best, kind="stable")[:MOST]
    order = order[shown.best[order] >= np.float32(threshold)]
    centres = results.store.values(f"objects/{head}/centroids")[order, ::-1].astype(np.float64)
    areas = results.store.values(f"objects/{head}/area_um2")[order]
    across = np.sqrt(4 / np.pi * areas) * LEAST_DIAMETERS
    return [
        Region(y, x, side, side, f"{area:.0f} µm², probability {probability:.2f}")
        for (y, x), side, area, probability in zip(
            to_world(results.world, centres).tolist(), across.tolist(), areas, shown.best[order],
            strict=True,
        )
    ]  # fmt: skip


def _placed(
    affine: Affine, middle: tuple[float, float], sides: tuple[int, int], words: str
) -> Region:
    """Bring a rectangle of cells to the world, not too small to be seen in its surroundings."""
    ((y, x),) = to_world(affine, np.array([middle])).tolist()
    height, width = np.abs(affine[:2, :2]) @ np.maximum(sides, LEAST_PATCHES)
    return Region(y, x, float(height), float(width), words)


def look_at(viewer: Any, region: Region) -> None:
    """Move the camera to a region."""
    height, width = viewer.canvas.size
    viewer.scene.camera.zoom = FILLED * min(height / region.height, width / region.width)
    viewer.scene.camera.center = (0, region.y, region.x)
