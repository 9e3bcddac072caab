"""From features to maps: what heads say of each patch, in the store and as pictures beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gigavim.area import CellAreas, cell_areas
from gigavim.bag import attend
from gigavim.foreground import thumbnail
from gigavim.georeference import Registration
from gigavim.head import ROWS_AT_ONCE, ClassTable, clusters, probabilities
from gigavim.ngff import coded, create_level, finish_probabilities
from gigavim.pipelines.plan import Plan
from gigavim.quality import Quality
from gigavim.store import ResultStore
from gigavim.store.disk import writing
from gigavim.store.windows import SIDE
from gigavim.views.geotiff import write_class_geotiff
from gigavim.views.overlay import write_overlay
from gigavim.views.rgb import to_rgb

logger = logging.getLogger(__name__)

PICTURE_SIDE = 1600
"""Longest side of the image in an overlay, in pixels."""


FOREGROUND = ClassTable(("foreground",), ((0, 158, 115),))
"""Of the map of what was read."""


@dataclass(frozen=True)
class ClassMap:
    """What a head says of each patch of the sequence."""

    name: str
    """Of the head."""
    labels: NDArray[np.uint8]
    """0 where a patch could not be read, else 1 more than the index of its class; shape (n,)."""
    table: ClassTable

    def shares(self) -> dict[str, float]:
        """Return the share of the readable foreground that each class has."""
        counts = np.bincount(self.labels, minlength=len(self.table.names) + 1)[1:]
        shares = counts / max(1, counts.sum())
        return dict(zip(self.table.names, shares.tolist(), strict=True))

    def areas(self, plan: Plan) -> tuple[dict[str, float], CellAreas]:
        """Return the area of each class, none where areas are unknown, and those of the cells."""
        grid, source = plan.setup.grid, plan.setup.source
        cells = cell_areas(Registration.of(grid, source), grid.rows, source.levels[0].height)
        if cells.of_row is None:
            return {}, cells
        weights = cells.of_row[plan.sequence.index[:, 0]]
        sums = np.bincount(self.labels, weights, len(self.table.names) + 1)[1:]
        return dict(zip(self.table.names, sums.tolist(), strict=True)), cells


def apply_heads(plan: Plan, store: ResultStore) -> list[ClassMap]:
    """Run the heads on the features and vectors in the store; some of them give a map."""
    maps = []
    if "classify" in plan.setup.heads:
        maps += _classify(plan, store)
    if "clusters" in plan.setup.heads:
        valid = store.values("tokens/valid") > 0
        config = plan.setup.config
        features = store.array("tokens/features")
        found = clusters(features, config.clusters, config.seed, valid)
        labels = np.zeros(len(valid), np.uint8)
        labels[valid] = found + 1
        maps.append(ClassMap("clusters", labels, ClassTable.of_clusters(int(found.max()) + 1)))
    return maps


def announce_map(plan: Plan, store: ResultStore) -> None:
    """Say what shows in the store while blocks are committed: classes, or what has been read."""
    grid, table = plan.setup.grid, plan.told_by_block
    name = "foreground" if table is None else "classify"
    table = table or FOREGROUND
    registration = Registration.of(grid, plan.setup.source)
    store.announce(name, table.names, table.colours, grid.shape, registration)


def image_scores(plan: Plan, store: ResultStore) -> dict[str, float]:
    """Return the probability of each class for the image as a whole, by the names there are."""
    table = plan.setup.model.spec.classes
    if "classify" not in plan.setup.heads or table is None:
        return {}
    return dict(zip(table.names, store.values("image/scores").tolist(), strict=True))


def write_maps(plan: Plan, store: ResultStore, maps: Sequence[ClassMap], quality: Quality) -> None:
    """Write the foreground, what is wrong with the image and each map, as label pyramids."""
    registration = Registration.of(plan.setup.grid, plan.setup.source)
    read = plan.sequence.scatter(store.values("tokens/valid"), 0)
    names, colours = FOREGROUND.names, FOREGROUND.colours
    store.write_label_map("foreground", read, names, colours, registration)
    store.write_label_map("qc", quality.labels, quality.names, quality.colours, registration)
    for made in maps:
        layout = plan.sequence.scatter(made.labels, 0)
        names, colours = made.table.names, made.table.colours
        store.write_label_map(made.name, layout, names, colours, registration)
        if made.name == "classify":
            _write_probabilities(plan, store, made, registration)
    if "classify" in plan.setup.heads and plan.setup.model.bag is not None:
        weights = plan.sequence.scatter(store.values("tokens/attention"), np.nan)[None]
        store.write_map("attention", weights, ("attention",), ((213, 94, 0),), registration)


def write_pictures(plan: Plan, store_path: Path, made: ClassMap) -> dict[str, str | None]:
    """Put an overlay, and for a scene a GeoTIFF, beside the store.

    Returns
    -------
    pictures
        Path of the ``overlay`` and of the ``geotiff``, None where there is none.
    """
    source, grid = plan.setup.source, plan.setup.grid
    stem = store_path.name.removesuffix(".zarr").removesuffix(".gigavim")
    layout = plan.sequence.scatter(made.labels, 0)
    names, colours = made.table.names, made.table.colours
    registration = Registration.of(grid, source)

    overlay = store_path.with_name(f"{stem}.{made.name}.png")
    pixels, ratio_y, ratio_x = thumbnail(source, PICTURE_SIDE)
    write_overlay(
        overlay,
        to_rgb(pixels, source.bands),
        (ratio_y, ratio_x),
        layout,
        registration,
        names,
        colours,
        title=f"{Path(source.path).name}: {made.name} by {plan.setup.model.path.stem}",
    )
    if registration.cell_transform is None:
        return {"overlay": str(overlay), "geotiff": None}
    geotiff = store_path.with_name(f"{stem}.{made.name}.tif")
    write_class_geotiff(geotiff, layout, registration, names, colours)
    return {"overlay": str(overlay), "geotiff": str(geotiff)}


def _classify(plan: Plan, store: ResultStore) -> list[ClassMap]:
    """Classify the image and each patch; in tiles mode the patches of a tile have its class.

    A model of whole images classifies these alone, and says where in the image it looked.
    """
    encoder, table = plan.setup.model.encoder, plan.setup.model.spec.classes
    if plan.setup.model.bag is not None:
        readable = store.values("tokens/valid") > 0
        seen = attend(plan.setup.model.bag, store.array("tokens/features"), readable)
        store.write_array("image/scores", seen.scores)
        store.write_array("image/vector", seen.vector)
        store.write_array("tokens/attention", seen.attention)
        return []
    parts: Iterable[NDArray[np.float32]]
    if plan.tile is None:
        (scores,) = probabilities(store.values("image/vector")[None], encoder)
        store.write_array("image/scores", scores[0])
        parts = probabilities(store.array("tokens/features"), encoder)
    else:
        by_tile = np.concatenate(list(probabilities(store.array("tiles/vectors"), encoder)))
        readable = store.values("tiles/valid") > 0
        store.write_array("tiles/probs", by_tile.astype(np.float16))
        store.write_array("image/scores", by_tile[readable].mean(0))
        tiles = _tiles_of_patches(plan, store.values("tiles/grid_index"))
        parts = (by_tile[tiles[cut]] for cut in plan.sequence.chunks(ROWS_AT_ONCE))
    if table is None or len(table.names) > 255:
        return []
    # By its mean, what the head says of an image is the mean of what it says of the patches.
    pooled = encoder.config.class_token, encoder.config.pool
    if plan.tile is None and pooled != ("none", "mean"):
        logger.warning(
            "%s: the model classifies by its class token, not patch by patch; there is no class "
            "map in whole mode, --mode tiles makes one", plan.setup.source.path,
        )  # fmt: skip
        return []
    valid = store.values("tokens/valid") > 0
    labels = np.zeros(len(valid), np.uint8)
    shape = (len(valid), len(table.names))
    store.write_rows("tokens/probs", _labelled(parts, valid, labels), shape, np.float16)
    return [ClassMap("classify", labels, table)]


def _tiles_of_patches(plan: Plan, corners: NDArray[np.integer]) -> NDArray[np.intp]:
    """Return which tile each patch of the sequence is in, given the first patch of each tile."""
    assert plan.tile is not None
    tile_of = np.full([-(-side // plan.tile) for side in plan.setup.grid.shape], -1)
    tile_of[tuple((corners // plan.tile).T)] = np.arange(len(corners))
    return np.asarray(tile_of[tuple((plan.sequence.index // plan.tile).T)])


def _labelled(
    parts: Iterable[NDArray[np.float32]], valid: NDArray[np.bool_], labels: NDArray[np.uint8]
) -> Iterator[NDArray[np.float32]]:
    """Pass probabilities on, NaN where a patch is not valid, and note the likeliest classes."""
    start = 0
    for probs in parts:
        here = slice(start, start + len(probs))
        labels[here] = np.where(valid[here], probs.argmax(1) + 1, 0)
        probs[~valid[here]] = np.nan
        yield probs
        start += len(probs)


def _write_probabilities(
    plan: Plan, store: ResultStore, made: ClassMap, registration: Registration
) -> None:
    """Write the maps of probabilities window by window, however many classes there are."""
    probs, names, grid = store.array("tokens/probs"), made.table.names, plan.setup.grid
    maps = store.group.require_group("maps")
    with writing(store.path):
        level = create_level(maps, made.name, (len(names), *grid.shape), np.uint8, shard=SIDE)
        for block in grid.blocks(SIDE, SIDE):
            cells = np.indices((block.rows, block.columns)).reshape(2, -1).T
            corner = np.array([block.row, block.column])
            positions = plan.sequence.positions_of(cells + corner)
            known = np.flatnonzero(positions >= 0)
            # In rising order, so that each part of the file is read once.
            known = known[np.argsort(positions[known])]
            window = np.zeros((len(cells), len(names)), np.uint8)
            for start in range(0, len(known), ROWS_AT_ONCE):
                rows = known[start : start + ROWS_AT_ONCE]
                read = np.asarray(probs.oindex[positions[rows].astype(np.int64)], np.float32)
                window[rows] = coded(read)
            level[:, *block.slices] = window.T.reshape(-1, block.rows, block.columns)
        finish_probabilities(maps, made.name, names, made.table.colours, registration)
