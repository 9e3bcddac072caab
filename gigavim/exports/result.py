"""A finished store, as exports look at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from gigavim.errors import StoreError
from gigavim.geometry import Spacing
from gigavim.georeference import Registration, Transform
from gigavim.ngff import Colour
from gigavim.store import ResultStore

ROWS_AT_ONCE = 32_768
"""Rows of a table that are held at once."""
NUCLEI = "nuclei"
# Maps that say most come first.
_PREFERRED = ("classify", "clusters")
_LAST = (NUCLEI, "qc", "foreground")


@dataclass(frozen=True, eq=False)
class Layer:
    """A class map."""

    name: str
    levels: tuple[zarr.Array[Any], ...]
    """Class of each cell, finest first, each half as fine as the one before; 0 for none."""
    names: tuple[str, ...]
    """Of the classes 1, 2, ..."""
    colours: tuple[Colour, ...]
    registration: Registration
    """Of the finest level."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the finest level."""
        rows, columns = self.levels[0].shape
        return rows, columns


@dataclass(frozen=True, eq=False)
class Rows:
    """Some of the patches or tiles that could be read."""

    number: NDArray[np.int64]
    """Which rows of the store's table they are."""
    coords: NDArray[np.int32]
    """x and y of the top-left corner, in level-0 pixels, shape (m, 2)."""
    index: NDArray[np.int32]
    """Row and column on the grid of patches, of a tile's first patch; shape (m, 2)."""
    probs: NDArray[np.float32] | None
    """Of each of the table's classes, shape (m, K); None where there are none."""


@dataclass(frozen=True, eq=False)
class Table:
    """The patches of an image, or the tiles where each was a sequence of its own."""

    store: ResultStore
    group: str
    """``tokens`` or ``tiles``."""
    side_px: int
    """Of a patch or tile, in pixels as the model saw them."""
    overlap_px: int
    """Between neighbours, in the same pixels."""
    side_level0: tuple[float, float]
    """Height and width in level-0 pixels."""
    classes: tuple[str, ...]
    """Of which there are probabilities; none where no head gave any."""

    @property
    def readable(self) -> int:
        """How many could be read: those that `parts` yields."""
        return int((self.store.values(f"{self.group}/valid") > 0).sum())

    @property
    def width(self) -> int:
        """Numbers in a feature."""
        return int(self._features.shape[1])

    def parts(self) -> Iterator[Rows]:
        """Yield those that could be read, in the store's order, a few at a time."""
        for start in range(0, self._features.shape[0], ROWS_AT_ONCE):
            cut = slice(start, start + ROWS_AT_ONCE)
            valid = np.asarray(self.store.array(f"{self.group}/valid")[cut]) > 0
            coords, index = (
                np.asarray(self.store.array(f"{self.group}/{name}")[cut])[valid]
                for name in ("coords", "grid_index")
            )
            probs = None
            if self.classes:
                probs = np.asarray(self.store.array(f"{self.group}/probs")[cut], np.float32)[valid]
            yield Rows(start + np.flatnonzero(valid), coords, index, probs)

    def features(self) -> Iterator[NDArray[np.float16]]:
        """Yield the features of what `parts` yields, shape (m, D)."""
        for start in range(0, self._features.shape[0], ROWS_AT_ONCE):
            cut = slice(start, start + ROWS_AT_ONCE)
            valid = np.asarray(self.store.array(f"{self.group}/valid")[cut]) > 0
            yield np.asarray(self._features[cut])[valid]

    @property
    def _features(self) -> zarr.Array[Any]:
        return self.store.array(
            f"{self.group}/{'vectors' if self.group == 'tiles' else 'features'}"
        )


@dataclass(frozen=True, eq=False)
class Result:
    """A finished store."""

    store: ResultStore
    about: dict[str, Any]
    """What the store says of itself."""
    spacing: Spacing
    """Of level 0."""

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a store whose run is complete.

        Raises
        ------
        StoreError
            If there is none, or its run is not complete.
        """
        store = ResultStore.open(path)
        about = store.attributes
        if not store.complete:
            raise StoreError(
                f"{path} is not complete (its run is {about['status']}); "
                "finish it with the same `gigavim run`"
            )
        spacing = about["spacing"]
        height, width = spacing["level0"]
        return cls(store, about, Spacing(height, width, spacing["unit"], spacing["origin"]))

    @property
    def name(self) -> str:
        """Of the image, without what its store adds."""
        return self.store.path.name.removesuffix(".zarr").removesuffix(".gigavim")

    @property
    def is_slide(self) -> bool:
        """Whether lengths are µm; else it is a scene."""
        return self.spacing.unit == "µm"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of level 0."""
        return self.about["source"]["height"], self.about["source"]["width"]

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.about["grid"]["rows"], self.about["grid"]["columns"]

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.about["model"]["id"])

    @property
    def has_nuclei(self) -> bool:
        """Whether nuclei were looked for."""
        return f"objects/{NUCLEI}" in self.store.group

    def heads(self) -> tuple[str, ...]:
        """Return the class maps there are, the one that says most first."""
        labels = self.store.group["labels"]
        assert isinstance(labels, zarr.Group)
        found = set(labels.group_keys())
        first = [name for name in _PREFERRED if name in found]
        last = [name for name in _LAST if name in found]
        return (*first, *sorted(found.difference(first, last)), *last)

    def layer(self, head: str | None = None) -> Layer:
        """Return a class map, the one that says most if no name is given.

        Raises
        ------
        StoreError
            If there is none of that name.
        """
        heads = self.heads()
        if head is not None and head not in heads:
            raise StoreError(
                f"{self.store.path} has no class map {head!r}; it has {', '.join(heads)}"
            )
        return self._layer(f"labels/{head or heads[0]}")

    def probabilities(self, head: str) -> tuple[zarr.Array[Any], ...]:
        """Return the maps of each class's probability, uint8 as stored; none where there are none.

        Shape (class, rows, columns), finest first.
        """
        if f"maps/{head}" not in self.store.group:
            return ()
        ome: Any = self.store.group[f"maps/{head}"].attrs["ome"]
        datasets = ome["multiscales"][0]["datasets"]
        return tuple(self.store.array(f"maps/{head}/{dataset['path']}") for dataset in datasets)

    def table(self) -> Table:
        """Return the tiles where there are some, since one of them is one feature, else patches."""
        if "tiles" not in self.store.group:
            return self.patches()
        grid = self.about["grid"]
        side_px = (self._tile_patches() - 1) * grid["stride"] + grid["patch"]
        return self._table("tiles", side_px, 0)

    def patches(self) -> Table:
        """Return the patches, also where they are parts of tiles."""
        grid = self.about["grid"]
        return self._table("tokens", grid["patch"], grid["patch"] - grid["stride"])

    def _table(self, group: str, side_px: int, overlap_px: int) -> Table:
        grid = self.about["grid"]
        height, width = (side_px / grid["stride"] * cell for cell in grid["cell_level0"])
        known = f"{group}/probs" in self.store.group and "labels/classify" in self.store.group
        classes = self.layer("classify").names if known else ()
        return Table(self.store, group, side_px, overlap_px, (height, width), classes)

    def _tile_patches(self) -> int:
        """Return how many patches a tile has to a side."""
        grid = self.about["grid"]
        if "tile" in grid:
            return int(grid["tile"])
        # Tiles lie side by side from the grid's corner on.
        corners = self.store.values("tiles/grid_index")
        return int(np.gcd.reduce(corners, axis=None)) or max(grid["rows"], grid["columns"])

    def _layer(self, path: str) -> Layer:
        ome: Any = self.store.group[path].attrs["ome"]
        datasets = ome["multiscales"][0]["datasets"]
        levels = tuple(self.store.array(f"{path}/{dataset['path']}") for dataset in datasets)
        label = ome["image-label"]
        scale, translation = (
            np.array(transform[transform["type"]]) / (self.spacing.y, self.spacing.x)
            for transform in datasets[0]["coordinateTransformations"]
        )
        # NGFF counts from the centre of the first pixel to the centre of the first cell.
        corner = translation - (scale - 1) / 2
        (cell_y, cell_x), (corner_y, corner_x) = scale.tolist(), corner.tolist()
        attributes: dict[str, Any] = dict(levels[0].attrs)
        return Layer(
            path.removeprefix("labels/"),
            levels,
            tuple(str(entry["class"]) for entry in label["properties"]),
            tuple((r, g, b) for r, g, b, _ in (entry["rgba"] for entry in label["colors"])),
            Registration(
                cell_y,
                cell_x,
                self.spacing,
                corner_y,
                corner_x,
                attributes.get("proj:wkt2"),
                _level0_transform(attributes, (cell_y, cell_x), (corner_y, corner_x)),
            ),
        )


def _level0_transform(
    attributes: dict[str, Any], cell: tuple[float, float], corner: tuple[float, float]
) -> Transform | None:
    """Return the transform of level-0 pixels, given that of the cells."""
    if "spatial:transform" not in attributes:
        return None
    a, b, c, d, e, f = attributes["spatial:transform"]
    a, b, d, e = a / cell[1], b / cell[0], d / cell[1], e / cell[0]
    return a, b, c - a * corner[1] - b * corner[0], d, e, f - d * corner[1] - e * corner[0]
