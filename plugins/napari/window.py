"""What the plugin does to a viewer: keeps what is read lazily fresh, and asks for lost images."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import napari
from napari.layers import Layer
from napari.utils.notifications import (
    Notification,
    notification_manager,
    show_error,
    show_warning,
)
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog

from gigavim.errors import GigavimError, SourceError
from gigavim.plugins.napari.follow import follow
from gigavim.plugins.napari.layers import add_image, window_layer
from gigavim.plugins.napari.lazy import Level, Pyramid, waiting
from gigavim.plugins.napari.reading import Opened, is_store, open_path
from gigavim.plugins.napari.results import Results, open_results

EVERY_MS = 100
"""From one look at what was read to the next."""

_fresh: weakref.WeakKeyDictionary[Layer, weakref.WeakSet[Pyramid]] = weakref.WeakKeyDictionary()
"""What each layer is kept fresh with."""


def attach(viewer: Any) -> None:
    """Have a viewer show lazy layers without waiting for them, and a scale bar; twice is once."""
    if _on_inserted not in viewer.layers.events.inserted.callbacks:
        viewer.layers.events.inserted.connect(_on_inserted)
        viewer.canvas.overlays.scale_bar.visible = True
    for layer in viewer.layers:
        _keep_own_fresh(layer)


def keep_fresh(layer: Layer, pyramid: Pyramid) -> None:
    """Have a layer show what is read of a pyramid as it comes; twice is once."""
    known = _fresh.setdefault(layer, weakref.WeakSet())
    if pyramid not in known:
        known.add(pyramid)
        refresher = _Refresher(layer, pyramid)
        pyramid.listeners.append(refresher.start)
        pyramid.waits = False
        # Something may have been asked for before the layer was shown.
        refresher.start()


def is_loading(viewer: Any) -> bool:
    """Tell whether anything that is looked at is still shown coarser than it will be."""
    return any(p.loading for layer in viewer.layers if layer.visible for p in _pyramids(layer))


def load_view(viewer: Any) -> None:
    """Read all that is looked at, however long it takes: for a picture of it."""
    with waiting():
        for layer in viewer.layers:
            if layer.visible and any(True for _ in _pyramids(layer)):
                layer.refresh(extent=False, highlight=False)


def open_viewer(paths: Sequence[str], source: str | None = None) -> Any:
    """Open images and results in a new window, with the dock of results beside them.

    Parameters
    ----------
    source
        Where the image of results lies, if it is no longer where it was.

    Raises
    ------
    GigavimError
        If one of them cannot be opened; no window is there then.
    """
    if source is not None and not any(is_store(path) for path in paths):
        raise SourceError(f"{source} is named as the image of results, and none are opened")
    opened = [open_path(path, source) for path in paths]
    viewer = napari.Viewer(title="GigaVim")
    attach(viewer)
    for found in opened:
        for data in found.layers:
            viewer.add_layer(window_layer(data))
        announce(found, viewer)
    if any(found.results for found in opened):
        viewer.window.add_plugin_dock_widget("gigavim", "Results")
    return viewer


def announce(opened: Opened, viewer: Any) -> None:
    """Say what is amiss with what was opened, and follow a run that has not come to its end.

    Parameters
    ----------
    viewer
        None where there is no window.
    """
    if opened.warning:
        show_warning(opened.warning)
    results = opened.results
    if results is None:
        return
    store = results.store.path
    if opened.lost:
        message = (
            f"{results.source} is not there any more, or is another image: its results are shown "
            f"without it. Find it here, or with: gigavim view {store} --source IMAGE"
        )
        actions = (("Find the image …", partial(_find, results)),)
        notification_manager.dispatch(Notification(message, "warning", actions))
    if results.complete:
        return
    if viewer is None:
        show_warning(f"{store} is unfinished: what there is of it is shown; run it again to go on")
    else:
        follow(viewer, store, source=None if opened.lost else results.source)


def _find(results: Results, _: Any) -> None:
    """Ask where an image is now, and show it beneath its results."""
    viewer = napari.current_viewer()
    name = Path(results.source).name
    path, _ = QFileDialog.getOpenFileName(None, f"Where is {name} now?")
    if viewer is not None and path:
        show_image(viewer, results, path)


def show_image(viewer: Any, results: Results, path: str) -> None:
    """Show the image of results that are shown without it, if it is that image."""
    try:
        found = open_results(results.store.path, path)
        add_image(viewer, found)
    except GigavimError as error:
        show_error(str(error))


def _on_inserted(event: Any) -> None:
    _keep_own_fresh(event.value)


def _keep_own_fresh(layer: Layer) -> None:
    """Keep a layer fresh whose data are a pyramid."""
    first = layer.data[0] if getattr(layer, "multiscale", False) else None
    if isinstance(first, Level):
        keep_fresh(layer, first.pyramid)


def _pyramids(layer: Layer) -> list[Pyramid]:
    """Return the pyramids that a layer shows."""
    return list(_fresh.get(layer, ()))


class _Refresher:
    """Looks now and then whether tiles have come, while any are to come."""

    def __init__(self, layer: Layer, pyramid: Pyramid) -> None:
        self._layer, self._pyramid = weakref.ref(layer), weakref.ref(pyramid)
        self._seen = self._seen_coarse = self._told = 0
        self._is_due = False

    def start(self) -> None:
        """Begin to look."""
        if not self._is_due:
            self._is_due = True
            # A thread that reads may be the last to hold the pyramid, and this with it; a timer of
            # its own would then end in that thread, and Qt the process.
            QTimer.singleShot(EVERY_MS, lambda: self._look())

    def _look(self) -> None:
        self._is_due = False
        layer, pyramid = self._layer(), self._pyramid()
        if layer is None or pyramid is None:
            return
        # Asked first: what comes in between is seen the next time.
        loading, arrivals = pyramid.loading, pyramid.arrivals
        if arrivals != self._seen:
            self._seen = arrivals
            is_coarse = pyramid.coarse_tiles != self._seen_coarse
            self._seen_coarse = pyramid.coarse_tiles
            layer.refresh(thumbnail=is_coarse, extent=False, highlight=False)
        if loading or arrivals != pyramid.arrivals:
            self.start()
        if len(pyramid.faults) > self._told == 0:
            show_warning(pyramid.faults[0])
        self._told = len(pyramid.faults)
