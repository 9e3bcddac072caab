"""The results of a run, asked by places in the viewer's world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from gigavim import __version__
from gigavim.config import source_options
from gigavim.errors import StoreError
from gigavim.geometry import Spacing
from gigavim.georeference import Transform
from gigavim.plugins.napari.world import Affine, from_world, layer_affine, to_world, world_of_level0
from gigavim.sources import Source, open_source
from gigavim.store import ResultStore, fingerprint

FOREGROUND = "foreground"
FAULTS = "qc"


@dataclass(frozen=True, eq=False)
class Results:
    """A store, opened for reading, whole or not."""

    store: ResultStore
    source: str
    """Path of the image; there may be nothing any more."""
    world: Affine
    """Corners of level-0 pixels, (row, column, 1), to the world, (y, x, 1)."""
    unit: str
    """Of the world: ``µm``, ``metre``, ``degree``."""
    heads: tuple[str, ...]
    """Those that have a finished class map."""

    @property
    def status(self) -> str:
        """``complete``, ``running`` or ``written``, as of when the store was opened."""
        return str(self.store.attributes["status"])

    @property
    def complete(self) -> bool:
        """Whether everything is there."""
        return self.status == "complete"

    @property
    def has_image(self) -> bool:
        """Whether the image is where it was, and what it was; takes milliseconds."""
        known = self.store.attributes["source"]["fingerprint"]
        return Path(self.source).exists() and fingerprint(self.source)["fingerprint"] == known

    def open_image(self, path: str | None = None) -> Source:
        """Open the image as the run did.

        Parameters
        ----------
        path
            Where it lies; where `source` says if None.

        Raises
        ------
        SourceError
            If it cannot be read.
        """
        return open_source(path or self.source, **_options(self.store))

    @property
    def spacing(self) -> tuple[float, float]:
        """Height and width of a level-0 pixel, in `unit`."""
        y, x = self.store.attributes["spacing"]["level0"]
        return y, x

    @property
    def label_maps(self) -> tuple[str, ...]:
        """Names of the finished maps under ``labels/``: those of `heads`, and the foreground."""
        return _class_maps(self.store)

    @property
    def value_maps(self) -> tuple[str, ...]:
        """Names of the finished maps under ``maps/``."""
        maps: Any = self.store.group.get("maps")
        return (
            () if maps is None else tuple(n for n, g in sorted(maps.groups()) if "ome" in g.attrs)
        )

    def channels(self, name: str) -> list[tuple[str, str, tuple[float, float]]]:
        """Return name, colour as ``#RRGGBB`` and range of the channels of ``maps/<name>``.

        Probabilities range from 0 to 1, however they are stored.
        """
        is_coded = self.levels(f"maps/{name}")[0].dtype == np.uint8
        return [
            (
                str(channel["label"]),
                f"#{channel['color']}",
                (0.0, 1.0) if is_coded else (channel["window"]["start"], channel["window"]["end"]),
            )
            for channel in self._ome(f"maps/{name}")["omero"]["channels"]
        ]

    def classes(self, head: str) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
        """Return names and colours, 0 to 255, of the classes 1, 2, ... of a class map."""
        image_label: Any = self._ome(f"labels/{head}")["image-label"]
        names = tuple(str(entry["class"]) for entry in image_label["properties"])
        colours = tuple(tuple(entry["rgba"][:3]) for entry in image_label["colors"])
        return names, colours

    def affine(self, name: str) -> Affine:
        """Return where the centres of the cells of ``labels/<head>`` or ``maps/<head>`` lie."""
        (multiscale,) = self._ome(name)["multiscales"]
        scale, translation = multiscale["datasets"][0]["coordinateTransformations"]
        spacing = np.array(self.spacing)
        cell = np.array(scale["scale"][-2:]) / spacing
        # NGFF counts from the centre of the first pixel to the centre of the first cell.
        corner = np.array(translation["translation"][-2:]) / spacing - (cell - 1) / 2
        return layer_affine(self.world, tuple(cell), tuple(corner))

    def levels(self, name: str) -> list[Any]:
        """Return the arrays of ``labels/<head>`` or ``maps/<head>``, finest first."""
        (multiscale,) = self._ome(name)["multiscales"]
        return [self.store.array(f"{name}/{dataset['path']}") for dataset in multiscale["datasets"]]

    def token_at(self, y: float, x: float) -> int | None:
        """Return the row of ``tokens/*`` whose cell is at a place; None on background."""
        cell = np.floor(from_world(self._cells, np.array([[y, x]])) + 0.5).astype(int)[0]
        if not (0 <= cell[0] < self.rows.shape[0] and 0 <= cell[1] < self.rows.shape[1]):
            return None
        row = int(self.rows[tuple(cell)])
        return None if row < 0 else row

    def token_centres(self, tokens: NDArray[np.integer] | Sequence[int]) -> NDArray[np.float64]:
        """Return (y, x) of the middle of each token's patch, shape (m, 2)."""
        return to_world(self._cells, self.grid_index[np.asarray(tokens, np.intp)].astype(float))

    def cell_corners(self, token: int) -> NDArray[np.float64]:
        """Return (y, x) of the corners of a token's cell, clockwise, shape (4, 2)."""
        around = np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [0.5, -0.5]])
        return to_world(self._cells, self.grid_index[token] + around)

    def tokens_inside(self, polygons: Sequence[NDArray[np.floating]]) -> NDArray[np.int64]:
        """Return the tokens, ascending, whose middle lies in any of the polygons.

        Parameters
        ----------
        polygons
            Corners (y, x) of each, shape (n, 2).
        """
        found: list[NDArray[np.integer]] = []
        for polygon in polygons:
            shape = shapely.Polygon(from_world(self._cells, np.asarray(polygon, float)))
            shape = shape if shape.is_valid else shapely.make_valid(shape)
            top, left, bottom, right = np.nan_to_num(shape.bounds)
            rows = np.arange(max(0, int(np.ceil(top))), min(self.rows.shape[0], int(bottom) + 1))
            columns = np.arange(max(0, int(np.ceil(left))), min(self.rows.shape[1], int(right) + 1))
            shapely.prepare(shape)
            inside = shapely.contains_xy(shape, rows[:, None], columns[None])
            found.append(self.rows[np.ix_(rows, columns)][inside])
        every = np.unique(np.concatenate([np.zeros(0, np.int64), *found]))
        return every[every >= 0].astype(np.int64)

    @cached_property
    def grid_index(self) -> NDArray[np.int32]:
        """Row and column of each token's cell, shape (N, 2)."""
        return self.store.values("tokens/grid_index")

    @cached_property
    def rows(self) -> NDArray[np.int32]:
        """The token of each cell of the grid, -1 on background, shape (rows, columns)."""
        grid = self.store.attributes["grid"]
        rows = np.full((grid["rows"], grid["columns"]), -1, np.int32)
        rows[tuple(self.grid_index.T)] = np.arange(len(self.grid_index))
        return rows

    @cached_property
    def _cells(self) -> Affine:
        """Centres of the cells of the grid to the world."""
        grid = self.store.attributes["grid"]
        cell_y, cell_x = grid["cell_level0"]
        # A cell lies in the middle of its patch.
        beside = (grid["patch"] / grid["stride"] - 1) / 2
        return layer_affine(self.world, (cell_y, cell_x), (beside * cell_y, beside * cell_x))

    def _ome(self, name: str) -> dict[str, Any]:
        """Return the OME attributes of a map."""
        return _ome(self.store, name)


def open_results(path: str | Path, source: str | Path | None = None) -> Results:
    """Open a store, be it of a run that goes on or of one that failed.

    Parameters
    ----------
    source
        Where the image lies, if it is no longer where it was.

    Raises
    ------
    StoreError
        If there is no store, a newer version made it, it is damaged, or ``source`` is not its
        image.
    SourceError
        If a scene cannot be read whose unfinished store does not say yet where it lies.
    """
    path = Path(path)
    if not (path / "zarr.json").is_file():
        raise StoreError(f"{path} is no GigaVim store; open a NAME.gigavim.zarr of `gigavim run`")
    store = ResultStore.open(path)
    marks = store.attributes
    version = str(marks.get("version", "0"))
    if _number(version) > _number(__version__):
        raise StoreError(
            f"{path} was made by GigaVim {version}, and this is {__version__}; "
            "upgrade with pip install -U gigavim"
        )
    try:
        image, spacing = marks["source"], marks["spacing"]
        if source is not None and fingerprint(str(source))["fingerprint"] != image["fingerprint"]:
            raise StoreError(
                f"{source} is not the image that {path} is of, {image['uri']}; name that one"
            )
        where = str(source or image["uri"])
        y, x = spacing["level0"]
        own = Spacing(y, x, spacing["unit"], spacing["origin"])
        heads = _class_maps(store)
        transform = _transform(store, heads, where) if image["kind"] == "scene" else None
    except KeyError as error:
        raise StoreError(f"{path} is damaged: it lacks {error}; run again with --force") from error
    return Results(
        store, where, world_of_level0(own, transform), own.unit,
        tuple(head for head in heads if head not in (FOREGROUND, FAULTS)),
    )  # fmt: skip


def results_of(layer: Any) -> Results | None:
    """Return the results that a layer shows, or those of its image; None if it has none.

    Raises
    ------
    StoreError
        If the store is gone or damaged by now.
    """
    ours = layer.metadata.get("gigavim") or {}
    store = ours.get("store")
    return None if store is None else _opened(store, ours["source"], _stamp(Path(store)))


@lru_cache(maxsize=8)
def _opened(store: str, source: str, stamp: tuple[int, ...]) -> Results:
    """Open a store once, and again when it has changed."""
    del stamp
    return open_results(store, source if Path(source).exists() else None)


def _stamp(store: Path) -> tuple[int, ...]:
    """Return when a store last got a status or a map."""
    files = (store / "zarr.json", store / "labels" / "zarr.json", store / "maps" / "zarr.json")
    return tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)


def _number(version: str) -> tuple[int, ...]:
    """Return what versions are compared by.

    >>> _number("0.10.2rc1") > _number("0.9")
    True
    """
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts if part.isdigit())


def _ome(store: ResultStore, name: str) -> dict[str, Any]:
    attributes: Any = store.group[name].attrs["ome"]
    return dict(attributes)


def _class_maps(store: ResultStore) -> tuple[str, ...]:
    """Return the heads that have a finished class map, the foreground among them."""
    if "labels" not in store.group or "ome" not in store.group["labels"].attrs:
        return ()
    return tuple(_ome(store, "labels")["labels"])


def _options(store: ResultStore) -> dict[str, Any]:
    return source_options(store.attributes["configuration"])


def _transform(store: ResultStore, heads: Sequence[str], source: str) -> Transform | None:
    """Return where a scene lies, as its maps say, or itself."""
    if FOREGROUND not in heads:
        if not Path(source).exists():
            raise StoreError(
                f"{store.path} is unfinished, and its scene {source} is not there any more; "
                "say where it is with --source"
            )
        return open_source(source, **_options(store)).transform
    grid = store.attributes["grid"]
    attributes: Any = store.array(f"labels/{FOREGROUND}/0").attrs
    a, b, c, d, e, f = attributes["spatial:transform"]
    cell_y, cell_x = grid["cell_level0"]
    a, b, d, e = a / cell_x, b / cell_y, d / cell_x, e / cell_y
    beside = (grid["patch"] / grid["stride"] - 1) / 2
    corner_y, corner_x = beside * cell_y, beside * cell_x
    return (a, b, c - a * corner_x - b * corner_y, d, e, f - d * corner_x - e * corner_y)
