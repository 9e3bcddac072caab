"""The reader that napari calls for what is dropped on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
from napari.utils.notifications import show_error

from gigavim.errors import GigavimError
from gigavim.plugins.napari.layers import never_wait
from gigavim.plugins.napari.reading import is_store, open_path
from gigavim.plugins.napari.window import announce, attach
from gigavim.sources import open_source

Reader = Callable[[Any], list[tuple[Any, ...]]]

LARGE = 8192
"""Side from which a TIFF is ours whatever else it says: napari would read it as a whole."""


def get_reader(path: str | list[str]) -> Reader | None:
    """Return what reads a path, or None where it is better left to others.

    Those are several files at once, folders that hold no image of ours, and small TIFF files that
    say nothing of a pyramid or a place in the world, such as stacks.
    """
    if not isinstance(path, str):
        return None
    if is_store(path):
        return _read
    is_tiff = Path(path).suffix.lower() in (".tif", ".tiff")
    if not (is_tiff or Path(path).is_dir()):
        return _read
    try:
        source = open_source(path)
    except GigavimError:
        # A broken TIFF is read for the sake of what is said of it.
        return _read if is_tiff else None
    finest = source.levels[0]
    is_large = max(finest.height, finest.width) >= LARGE
    is_placed = source.crs is not None
    is_pyramid = len(source.levels) > 1 or source.reader == "zarr"
    return _read if is_large or is_placed or is_pyramid else None


def _read(path: str | list[str]) -> list[tuple[Any, ...]]:
    """Read one path; what cannot be read is said in words, and nothing is shown."""
    (path,) = [path] if isinstance(path, str) else path
    try:
        opened = open_path(path)
    except GigavimError as error:
        show_error(str(error))
        return [(None,)]
    viewer = napari.current_viewer()
    if viewer is not None:
        attach(viewer)
        never_wait(opened.layers)
    announce(opened, viewer)
    return list(opened.layers) or [(None,)]
