"""From features to maps: what heads say of each patch, in the store and as pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gigavim.foreground import thumbnail
from gigavim.georeference import Registration
from gigavim.head import ClassTable, classify, clusters
from gigavim.pipelines.plan import Plan
from gigavim.store import ResultStore
from gigavim.views.geotiff import write_class_geotiff
from gigavim.views.overlay import write_overlay
from gigavim.views.rgb import to_rgb

PICTURE_SIDE = 1600
"""Longest side of the image in an overlay, in pixels."""


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


def write_maps(plan: Plan, store: ResultStore, maps: Sequence[ClassMap]) -> None:
    """Write the foreground and each map to the store, as label pyramids."""
    registration = Registration.of(plan.setup.grid, plan.setup.source)
    read = plan.sequence.scatter(store.values("tokens/valid"), 0)
    store.write_label_map("foreground", read, ("foreground",), ((0, 158, 115),), registration)
    for made in maps:
        layout = plan.sequence.scatter(made.labels, 0)
        names, colours = made.table.names, made.table.colours
        store.write_label_map(made.name, layout, names, colours, registration)
        if made.name == "classify":
            probs = store.values("tokens/probs").astype(np.float32)
            layers = plan.sequence.scatter(probs, np.nan).transpose(2, 0, 1)
            store.write_map(made.name, layers, names, colours, registration)


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
    """Classify the image and, in tiles mode, each tile, whose class its patches then have."""
    encoder = plan.setup.model.encoder
    device = next(encoder.parameters()).device

    def probs(vectors: NDArray[Any]) -> NDArray[np.float32]:
        given = torch.from_numpy(vectors.astype(np.float32)).to(device)
        return classify(given, encoder).cpu().numpy()

    if plan.tile is None:
        store.write_array("image/scores", probs(store.values("image/vector")[None])[0])
        return []
    by_tile = probs(store.values("tiles/vectors"))
    readable = store.values("tiles/valid") > 0
    store.write_array("tiles/probs", by_tile.astype(np.float16))
    store.write_array("image/scores", by_tile[readable].mean(0))
    table = plan.setup.model.spec.classes
    if table is None or len(table.names) > 255:
        return []
    tile_of = np.full([-(-side // plan.tile) for side in plan.setup.grid.shape], -1)
    tile_of[tuple((store.values("tiles/grid_index") // plan.tile).T)] = np.arange(len(by_tile))
    mine = tile_of[tuple((plan.sequence.index // plan.tile).T)]
    store.write_array("tokens/probs", by_tile[mine].astype(np.float16))
    valid = store.values("tokens/valid") > 0
    labels = np.where(valid, by_tile.argmax(1)[mine] + 1, 0).astype(np.uint8)
    return [ClassMap("classify", labels, table)]
