"""Class maps at a threshold of probability, made anew from what a run stored; the store stays.

A cell whose highest probability is below the threshold becomes background, and sizes follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim.area import CellAreas, cell_areas
from gigavim.geometry import Spacing
from gigavim.georeference import Registration
from gigavim.ngff import Colour, halve_labels
from gigavim.plugins.napari.lazy import ALIGNED, Pyramid, waiting
from gigavim.plugins.napari.pyramids import label_pyramid, value_pyramid
from gigavim.plugins.napari.results import Results

ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True, eq=False)
class PatchMap:
    """What a head says of the patches of an image, on their grid."""

    names: tuple[str, ...]
    """Of the classes 1, 2, ..."""
    colours: tuple[Colour, ...]
    labels: NDArray[np.uint8]
    """0 for background, shape (rows, columns)."""
    best: NDArray[np.float32] | None
    """Probability of each cell's class, NaN where there is none; None where the head has none."""
    areas: CellAreas
    registration: Registration

    def above(self, threshold: float) -> NDArray[np.uint8]:
        """Return the class of each cell, 0 where its probability is below the threshold."""
        if self.best is None or threshold <= 0:
            return self.labels
        return np.where(self.best >= np.float32(threshold), self.labels, np.uint8(0))

    def levels(self, threshold: float, count: int) -> list[Any]:
        """Return the map and its coarser levels, as the store would have them."""
        levels: list[Any] = [self.above(threshold)]
        while len(levels) < count:
            levels.append(halve_labels(levels[-1]))
        return list(label_pyramid(levels).levels) if count > 1 else levels

    def sizes(self, threshold: float) -> NDArray[np.float64]:
        """Return the area of each class, in cells where areas are not known, shape (K,)."""
        labels, classes = self.above(threshold), len(self.names) + 1
        rows = np.arange(len(labels), dtype=np.intp)[:, None] * classes
        counts = np.bincount((labels + rows).ravel(), minlength=len(labels) * classes)
        of_row = np.ones(len(labels)) if self.areas.of_row is None else self.areas.of_row
        return np.asarray(of_row @ counts.reshape(-1, classes)[:, 1:])

    @property
    def columns(self) -> tuple[str, str]:
        """What `rows` says of a class."""
        return self.areas.unit or "patches", "%"

    def rows(self, threshold: float) -> list[tuple[str, str]]:
        """Say how large each class is, and what share of the classified image that is."""
        sizes = self.sizes(threshold)
        shares = 100 * sizes / max(sizes.sum(), np.finfo(float).tiny)
        return [
            (short(size), f"{share:.1f}") if size else ("–", "–")
            for size, share in zip(sizes, shares, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class NucleiMap:
    """Nuclei, one by one, and a map of the pixels that belong to them."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    pixels: Pyramid
    """Class of each pixel."""
    probabilities: Pyramid
    """Of each pixel, NaN where there is none."""
    best: NDArray[np.float32]
    """Mean probability over the pixels of each nucleus, shape (n,)."""
    tissue_mm2: float
    """What was looked at."""
    registration: Registration

    columns = ("nuclei", "per mm²")
    """What `rows` says of a class."""

    def levels(self, threshold: float, count: int) -> list[Any]:
        """Return the map and its coarser levels, made where somebody looks.

        At a coarser level the mean probability of a cell counts.
        """
        pairs = zip(self.pixels.levels[:count], self.probabilities.levels, strict=False)
        if threshold <= 0:
            return [pixels for pixels, _ in pairs]
        return [Above(pixels, probabilities, threshold) for pixels, probabilities in pairs]

    def sizes(self, threshold: float) -> NDArray[np.float64]:
        """Return how many nuclei are at least so probable, shape (1,)."""
        return np.array([np.count_nonzero(self.best >= np.float32(threshold))], np.float64)

    def rows(self, threshold: float) -> list[tuple[str, str]]:
        """Say how many nuclei there are, and how dense."""
        sizes = self.sizes(threshold)
        return [(f"{size:,.0f}", short(size / self.tissue_mm2)) for size in sizes]


class Above:
    """A level of a class map that is compared with a threshold where somebody looks.

    Parameters
    ----------
    labels, probabilities
        Of the cells, shape (rows, columns).
    """

    dtype = np.dtype(np.uint8)
    ndim = 2
    chunks = (ALIGNED, ALIGNED)

    def __init__(self, labels: Any, probabilities: Any, threshold: float) -> None:
        self.shape: tuple[int, int] = labels.shape
        self.size = int(np.prod(self.shape))
        self._labels, self._probabilities = labels, probabilities
        self._threshold = np.float32(threshold)

    def __getitem__(self, part: Any) -> NDArray[np.uint8]:
        labels, probabilities = self._labels[part], self._probabilities[part]
        return np.where(probabilities >= self._threshold, labels, np.uint8(0))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        # napari takes the coarsest level once and for all.
        with waiting():
            return np.asarray(self[...], dtype)


HeadMap = PatchMap | NucleiMap


def read_map(results: Results, head: str) -> HeadMap:
    """Read what a threshold needs: of patches all, of pixels nothing yet.

    Raises
    ------
    StoreError
        If the store cannot be read.
    """
    names, colours = results.classes(head)
    store = results.store
    registration = registration_of(results, f"labels/{head}")
    if f"objects/{head}" in store.group:
        grid, (y, x) = store.attributes["grid"], results.spacing
        cell_y, cell_x = grid["cell_level0"]
        patches = int((store.values("tokens/valid") > 0).sum())
        return NucleiMap(
            names, colours, label_pyramid(results.levels(f"labels/{head}")),
            value_pyramid(results.levels(f"maps/{head}"), 0),
            store.values(f"objects/{head}/probability").astype(np.float32),
            patches * cell_y * y * cell_x * x / 1e6, registration,
        )  # fmt: skip
    labels = store.values(f"labels/{head}/0")
    best = _best(results, labels.shape) if f"maps/{head}" in store.group else None
    height = int(store.attributes["source"]["height"])
    areas = cell_areas(registration, len(labels), height)
    return PatchMap(names, colours, labels, best, areas, registration)


def registration_of(results: Results, name: str) -> Registration:
    """Return how ``labels/<head>`` or ``maps/<head>`` relates to its image and the world."""
    marks = results.store.attributes
    y, x = results.spacing
    crs: Any = results.store.array(f"{name}/0").attrs.get("proj:wkt2")
    cells = np.linalg.inv(results.world) @ results.affine(name)
    cell = cells.diagonal()[:2]
    corner = cells[:2, 2] - cell / 2
    transform = None
    if marks["source"]["kind"] == "scene":
        (minus_e, minus_d, minus_f), (b, a, c) = results.world[:2].tolist()
        transform = (a, b, c, -minus_d, -minus_e, -minus_f)
    return Registration(
        float(cell[0]), float(cell[1]),
        Spacing(y, x, marks["spacing"]["unit"], marks["spacing"]["origin"]),
        float(corner[0]), float(corner[1]), crs, transform,
    )  # fmt: skip


def short(value: float) -> str:
    """Write a number with three digits or all that stand before the point.

    >>> short(0.01234), short(12.34), short(12345.6)
    ('0.0123', '12.3', '12,346')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _best(results: Results, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the highest probability of each cell."""
    probs = results.store.array("tokens/probs")
    best = np.full(shape, np.nan, np.float32)
    for start in range(0, len(results.grid_index), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        index = results.grid_index[part]
        best[index[:, 0], index[:, 1]] = np.asarray(probs[part], np.float32).max(1)
    return best
