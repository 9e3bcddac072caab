"""Samples in napari's menu: made once, offline, and kept in the user's cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import pooch
from napari.layers import Layer
from napari.qt.threading import thread_worker
from napari.utils.notifications import show_info

from gigavim.plugins.napari.notify import notify
from gigavim.plugins.napari.reading import open_path
from gigavim.plugins.napari.window import attach
from gigavim.sample import make_scene, make_slide

SLIDE_TILES = 24, 30
SCENE_SHAPE = 1200, 1400


def sample_slide() -> list[Any]:
    """Show a made-up slide."""
    return _show("slide.svs", lambda path: make_slide(path, tiles=SLIDE_TILES))


def sample_scene() -> list[Any]:
    """Show a made-up scene."""
    return _show("scene.tif", lambda path: make_scene(path, shape=SCENE_SHAPE))


def _show(name: str, make: Callable[[Path], None]) -> list[Any]:
    """Return the layers of a sample that is there; make another in the background, and show it."""
    path = Path(pooch.os_cache("gigavim"), "samples", name)
    viewer = napari.current_viewer()
    if viewer is not None:
        attach(viewer)
    path.parent.mkdir(parents=True, exist_ok=True)
    if viewer is None and not path.exists():
        make(path)
    if path.exists():
        return list(open_path(str(path)).layers)

    @thread_worker(progress={"desc": f"making the sample {path.stem}"})  # type: ignore[untyped-decorator]
    def work() -> None:
        make(path)

    def show() -> None:
        for data in open_path(str(path)).layers:
            viewer.add_layer(Layer.create(*data))

    show_info(f"making the sample {path.stem}, once: some seconds")
    worker = work()
    worker.returned.connect(show)
    worker.errored.connect(notify)
    worker.start()
    return []
