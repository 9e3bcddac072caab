"""What there is to show of a path, and what is to be said of it; no window is touched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gigavim.errors import SourceError, StoreError
from gigavim.plugins.napari.layers import LayerData, image_layers, result_layers
from gigavim.plugins.napari.results import Results, open_results
from gigavim.store.naming import SUFFIX


@dataclass(frozen=True)
class Opened:
    """What was found at a path."""

    layers: list[LayerData]
    warning: str = ""
    """In words."""
    results: Results | None = None
    lost: bool = False
    """Whether the image of the results is not where it was."""


def open_path(path: str, source: str | None = None) -> Opened:
    """Open an image, or results with their image beneath them.

    Parameters
    ----------
    source
        Where the image of results lies, if it is no longer where it was.

    Raises
    ------
    GigavimError
        If it is neither, or one that cannot be read.
    """
    if not is_store(path):
        return Opened(image_layers(path))
    results = open_results(path, source)
    try:
        layers = result_layers(results)
    except KeyError as error:
        raise StoreError(f"{path} is damaged: it lacks {error}; run again with --force") from error
    if not results.has_image:
        return Opened(layers, results=results, lost=True)
    try:
        layers = image_layers(results.source, results) + layers
    except SourceError as error:
        return Opened(layers, f"the results are shown without their image: {error}", results)
    return Opened(layers, results=results)


def is_store(path: str) -> bool:
    """Tell whether a folder says that it is a GigaVim store, of whichever version."""
    if path.rstrip("/\\").endswith(SUFFIX):
        return True
    try:
        marks = json.loads((Path(path) / "zarr.json").read_bytes())
    except (OSError, ValueError):
        return False
    return "gigavim" in marks.get("attributes", {})
