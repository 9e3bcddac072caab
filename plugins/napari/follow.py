"""Layers that fill while a run goes on, whether it was started here or from the shell.

Nobody tells the viewer anything: it looks at the store every half second, in another thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from napari.utils.colormaps import DirectLabelColormap
from napari.utils.notifications import show_warning
from qtpy.QtCore import QObject, QTimer

from gigavim.errors import GigavimError, StoreError
from gigavim.plugins.napari.layers import add_results
from gigavim.plugins.napari.notify import notify
from gigavim.plugins.napari.results import Results, open_results
from gigavim.plugins.napari.world import layer_affine, layer_units
from gigavim.store import ResultStore, RunProgress
from gigavim.store.naming import SUFFIX
from gigavim.store.running import Filling, FillingMap, is_written, read_progress

EVERY_MS = 500
"""From one look at a store to the next."""
RUNNING = "running"
"""The kind of layer that fills."""


def follow(
    viewer: Any,
    store: str | Path,
    *,
    source: str | None = None,
    begun: Callable[[], bool] | None = None,
) -> Follower:
    """Show the maps of a run as they fill, and its final layers once it is complete.

    Parameters
    ----------
    source
        Where the image lies, if it is no longer where it was.
    begun
        Whether a process is at it, which may not have got as far as its store; whoever has started
        it also says how it has ended. By default what the store says of its process counts.

    Returns
    -------
    follower
        The one there is, where the store is followed already and nothing new has begun. It lives
        as long as the window.
    """
    # A widget is given the viewer in a wrapper, which the window is hidden by.
    viewer = getattr(viewer, "__wrapped__", viewer)
    window = viewer.window._qt_window
    for other in window.findChildren(Follower):
        if isinstance(other, Follower) and other.store == Path(store) and other.watches:
            if begun is None:
                return other
            other.stop("another run has begun")
    return Follower(viewer, window, Path(store), source, begun)


@dataclass(frozen=True)
class Look:
    """What one look at a store has found."""

    status: Literal["waiting", "running", "complete", "stopped"]
    results: Results | None = None
    progress: RunProgress | None = None
    maps: tuple[FillingMap, ...] = ()
    grown: bool = False
    """Whether there is more in the maps than at the last look."""


class Watch:
    """Looks at a store; for one other thread, which may wait for the disk."""

    def __init__(self, store: Path, source: str | None, begun: Callable[[], bool] | None) -> None:
        self._store, self._source, self._begun = store, source, begun or (lambda: False)
        self._results: Results | None = None
        self._filling = Filling(store)
        self._writer: Any = None

    def look(self) -> Look:
        """Return what is to be seen.

        Raises
        ------
        GigavimError
            If the store is gone or damaged, or its image is not to be read.
        """
        # What may change from one line to the next is asked in the order in which it does.
        begun = self._begun()
        try:
            writer = ResultStore.open(self._store).attributes.get("writer", {})
        except StoreError:
            if begun:
                return Look("waiting")
            raise
        written = is_written(self._store, writer)
        if writer != self._writer:  # another run, which may start over
            self._writer, self._filling, self._results = writer, Filling(self._store), None
        complete = ResultStore.open(self._store).complete
        if complete and not begun:
            return Look("complete", open_results(self._store, self._source))
        if complete or (begun and not written):
            return Look("waiting")
        self._results = self._results or open_results(self._store, self._source)
        grown = self._filling.update()
        return Look(
            "running" if written else "stopped",
            self._results,
            read_progress(self._store),
            tuple(self._filling.maps.values()),
            grown,
        )


class Follower(QObject):
    """Follows one run in one viewer; made by `follow`."""

    def __init__(
        self,
        viewer: Any,
        window: QObject,
        store: Path,
        source: str | None,
        begun: Callable[[], bool] | None,
    ) -> None:
        super().__init__(window)
        self.store = store
        self.watches = True
        self.progress: RunProgress | None = None
        self.why = ""
        """Nothing is followed any more, in words; empty while it is, or the run is complete."""
        self._viewer = viewer
        self._watch = Watch(store, source, begun)
        self._tells = begun is None
        self._shows = True
        self._layers: dict[str, Any] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gigavim-follow")
        self._looking: Future[Look] | None = None
        viewer.layers.events.removed.connect(self._on_removed)
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._on_time)
        self._timer.start(EVERY_MS)

    def stop(self, why: str = "") -> None:
        """Look no more; layers stay as they are."""
        if not self.watches:
            return
        self.watches, self.why = False, why
        self._timer.stop()
        self._thread.shutdown(wait=False)
        self._viewer.layers.events.removed.disconnect(self._on_removed)

    def _on_time(self) -> None:
        """Take what the last look has found, if it is done, and look again."""
        if self._looking is not None and self._looking.done():
            looked, self._looking = self._looking, None
            try:
                self._show(looked.result())
            except FileNotFoundError:
                pass  # the run starts over, or clears up, just now
            except (GigavimError, OSError) as error:
                if self._tells:
                    notify(error)
                self.stop(str(error))
        if self.watches and self._looking is None:
            self._looking = self._thread.submit(self._watch.look)

    def _show(self, look: Look) -> None:
        """Bring the layers to what was seen."""
        self.progress = look.progress
        if look.status == "complete":
            assert look.results is not None
            self._remove_layers()
            add_results(self._viewer, look.results)
            self.stop()
            return
        if look.results is not None and self._shows:
            for filling in look.maps:
                self._show_map(filling, look)
        if look.status == "stopped":
            said = look.progress and look.progress.stopped
            why = said or "its process is gone; the same run again continues where it stopped"
            if self._tells:
                show_warning(f"{self.store.name} is unfinished: {why}")
            self.stop(why)

    def _show_map(self, filling: FillingMap, look: Look) -> None:
        """Add the layer of a map, or draw what is new in it."""
        layer = self._layers.get(filling.name)
        name = f"{filling.name}, {_state(look)} · {self.store.name.removesuffix(SUFFIX)}"
        if layer is not None and layer.data is filling.labels:
            if look.grown:
                layer.refresh()
            if layer.name != name:
                layer.name = name
            return
        if not self._layers or layer is not None:
            self._remove_layers()
        assert look.results is not None
        classes = dict(enumerate(filling.names, 1))
        colours: dict[int | None, Any] = {None: np.zeros(4), 0: np.zeros(4)}
        for label, colour in enumerate(filling.colours, 1):
            colours[label] = np.array([*colour, 255]) / 255
        self._layers[filling.name] = self._viewer.add_labels(
            filling.labels,
            name=name,
            affine=layer_affine(look.results.world, filling.cell, filling.corner),
            units=layer_units(look.results.unit),
            axis_labels=("y", "x"),
            colormap=DirectLabelColormap(color_dict=colours),
            features={"index": [0, *classes], "class": ["", *classes.values()]},
            opacity=0.5,
            metadata={
                "gigavim": {
                    "kind": RUNNING,
                    "head": filling.name,
                    "store": str(self.store),
                    "source": look.results.source,
                }
            },
        )
        self._layers[filling.name].editable = False

    def _remove_layers(self) -> None:
        """Take away what was shown of the store so far, of an earlier attempt as well."""
        self._layers = {}
        for layer in list(self._viewer.layers):
            ours = layer.metadata.get("gigavim") or {}
            if ours.get("store") == str(self.store) and ours["kind"] != "image":
                self._viewer.layers.remove(layer)

    def _on_removed(self, event: Any) -> None:
        """Show no more when a layer was removed by somebody else."""
        if any(event.value is layer for layer in self._layers.values()):
            self._shows = False
            if self._tells:
                self.stop("its layer was removed; open the store to follow it again")


def words_of(progress: RunProgress) -> str:
    """Say how far a run is.

    >>> words_of(RunProgress("reading", 25, 100, 60.0))
    'reading 25 %, 3 min left'
    >>> words_of(RunProgress("writing", 0, 0, 60.0))
    'writing'
    """
    left = progress.left_s
    return _share(progress) + ("" if left is None else f", {_time(left)} left")


def _share(progress: RunProgress) -> str:
    if not progress.total:
        return progress.stage
    return f"{progress.stage} {100 * progress.done / progress.total:.0f} %"


def _state(look: Look) -> str:
    """Say in a layer's name that it is not finished."""
    if look.status == "stopped":
        return "unfinished"
    return f"running: {_share(look.progress)}" if look.progress else "running"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{np.ceil(seconds):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
