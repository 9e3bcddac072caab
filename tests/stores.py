"""Small stores with maps that can be recognised, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gigavim import __version__
from gigavim.geometry import Grid
from gigavim.georeference import Registration
from gigavim.ngff import coded, create_level, finish_probabilities
from gigavim.sources import Source, open_source
from gigavim.store import ResultStore, fingerprint

NAMES = ("red", "green", "blue")
COLOURS = ((230, 0, 0), (0, 230, 0), (0, 0, 230))


def write_store(
    path: Path,
    image: Path,
    labels: NDArray[np.uint8],
    *,
    patch: int,
    stride: int | None = None,
    source_spacing: tuple[float, float] | None = None,
    finished: bool = True,
    **marks: Any,
) -> Path:
    """Write a store whose head ``classify`` is sure of the labels, one for each patch.

    Parameters
    ----------
    labels
        0 for background, else 1 more than the index of a class; over the whole grid.
    finished
        Otherwise the run has not come to its end, and there are no maps yet.
    marks
        What the store says of itself beside, or instead.
    """
    source = open_source(image, source_spacing=source_spacing)
    finest = source.levels[0]
    grid = Grid.over(finest.height, finest.width, patch=patch, stride=stride)
    assert labels.shape == grid.shape
    index = np.argwhere(labels).astype(np.int32)
    with ResultStore.create(path, _marks(source, grid) | marks) as store:
        store.write_array("tokens/grid_index", index)
        store.write_array("tokens/coords", grid.coords(index))
        if not finished:
            return path
        sure = np.eye(len(NAMES), dtype=np.float16)[labels[labels > 0] - 1]
        store.write_array("tokens/probs", sure)
        store.write_array("tokens/valid", np.ones(len(index), np.uint8))
        registration = Registration.of(grid, source)
        present = (labels > 0).astype(np.uint8)
        store.write_label_map("foreground", present, ("foreground",), ((9, 9, 9),), registration)
        store.write_label_map("classify", labels, NAMES, COLOURS, registration)
        maps = store.group.require_group("maps")
        probs = np.stack([labels == label for label in (1, 2, 3)]).astype(np.float32)
        probs[:, labels == 0] = np.nan
        create_level(maps, "classify", probs.shape, np.uint8)[:] = coded(probs)
        finish_probabilities(maps, "classify", NAMES, COLOURS, registration)
        store.finish()
    return path


def _marks(source: Source, grid: Grid) -> dict[str, Any]:
    """Return what a run says of itself, as far as it is asked for."""
    finest, own = source.levels[0], source.spacing
    assert own is not None
    return {
        "version": __version__,
        "command": f"gigavim run {source.path}",
        "configuration": {"bands": None},
        "model": {"id": "test"},
        "source": {
            "uri": str(Path(source.path).absolute()),
            "kind": source.kind,
            "height": finest.height,
            "width": finest.width,
            **fingerprint(source.path),
        },
        "spacing": {"level0": [own.y, own.x], "unit": own.unit, "origin": own.origin},
        "grid": {
            "rows": grid.rows,
            "columns": grid.columns,
            "patch": grid.patch,
            "stride": grid.stride,
            "cell_level0": [grid.cell_y, grid.cell_x],
        },
    }
