"""Samples in napari's menu: made once, offline, and kept in the user's cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import napari
import numpy as np
import pooch
from qtpy.QtCore import QCoreApplication

from gigavim.plugins.napari.background import in_background
from gigavim.plugins.napari.layers import LayerData, never_wait
from gigavim.plugins.napari.notify import notify
from gigavim.plugins.napari.reading import open_path
from gigavim.plugins.napari.window import attach
from gigavim.sample import make_scene, make_slide

SLIDE_TILES = 24, 30
SCENE_SHAPE = 1200, 1400


def sample_slide() -> list[LayerData]:
    """Show a made-up slide."""
    return _show("slide.svs", lambda path: make_slide(path, tiles=SLIDE_TILES))


def sample_scene() -> list[LayerData]:
    """Show a made-up scene."""
    return _show("scene.tif", lambda path: make_scene(path, shape=SCENE_SHAPE))


def _show(file: str, make: Callable[[Path], None]) -> list[LayerData]:
    """Return the layers of a sample that is there; make another in the background, and show it."""
    path = Path(pooch.os_cache("gigavim"), "samples", file)
    path.parent.mkdir(parents=True, exist_ok=True)
    viewer = napari.current_viewer()
    if viewer is None and not path.exists():
        make(path)
    if path.exists():
        layers = open_path(str(path)).layers
        if viewer is not None:
            attach(viewer)
            never_wait(layers)
        return layers
    # napari wants a layer of a sample at once: one that says what will be there.
    name = f"{path.stem}: being made, once"

    def end() -> None:
        if name in viewer.layers:
            viewer.layers.remove(name)

    def show(_: None) -> None:
        end()
        viewer.open(str(path), plugin="gigavim")

    def fail(error: Exception) -> None:
        end()
        notify(error)

    application = QCoreApplication.instance()
    assert application is not None  # there is a viewer
    in_background(application, lambda: make(path), show, fail)
    return [(np.zeros((0, 2)), {"name": name}, "points")]
