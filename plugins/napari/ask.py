"""The dock "Ask a patch": click on the image, and see what a patch is and what is like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, Qt, Signal  # type: ignore[attr-defined]
from qtpy.QtGui import QHideEvent, QShowEvent
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFormLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QSpinBox,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from gigavim.errors import GigavimError
from gigavim.plugins.napari.background import in_background
from gigavim.plugins.napari.marks import (
    ASKED,
    KINDS,
    SIMILAR,
    SIMILARITY,
    clear,
    mark,
    show_similar,
)
from gigavim.plugins.napari.notify import notify
from gigavim.plugins.napari.panel import Panel
from gigavim.plugins.napari.patch import Comparison, Patch, compare, patch_at, why_no_patch
from gigavim.plugins.napari.probability_bars import ProbabilityBars
from gigavim.plugins.napari.regions import Region, look_at
from gigavim.plugins.napari.results import Results, results_of
from gigavim.similarity import FeatureTable, read_features

STILL = 4
"""Pixels on the screen that the mouse moves within one click; more is a drag."""
AROUND = 12
"""Patches to a side of what is shown of a place that is jumped to."""

CLICK = "Click on the image."
PRESS = "Press Ask, and click on the image."
OPEN = "Open the results of a run to ask them: a NAME.gigavim.zarr."
SELECT = "There is more than one run: select a layer of the one to ask."
NOT_YET = "This run is not complete ({}): its features are there to be asked when it is done."
UNREADABLE = "This patch could not be read: it has no features and no class."
SLOW = (
    "The features of this run are too large to be held (1 GiB at most), "
    "so each question reads them again."
)


class AskPanel(Panel):
    """Answers clicks on the image, by the run of the selected layer or else the only one.

    It does so while it is seen, the button is down and no tool for drawing is chosen.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self._results: Results | None = None
        self._patch: Patch | None = None
        self._read: tuple[Results, FeatureTable] | None = None
        self._reading: Results | None = None
        self._question = 0
        self._told = ""
        self.toggle = QPushButton("Ask")
        self.toggle.setCheckable(True)
        self.toggle.setChecked(True)
        self.toggle.setToolTip("A click on the image asks; dragging moves the image as ever")
        self.count = QSpinBox()
        self.count.setRange(1, 10_000)
        self.count.setValue(50)
        self.count.setKeyboardTracking(False)
        self.message = QLabel()
        self.message.setWordWrap(True)
        self.classes = ProbabilityBars()
        self.similar = QTreeWidget()
        self.similar.setToolTip("The most similar patches of this image; a click goes there")
        self._lay_out()
        self._connect()
        self._on_layers()

    def _lay_out(self) -> None:
        first, facts, column = QHBoxLayout(), QFormLayout(), QVBoxLayout(self)
        first.addWidget(self.toggle)
        first.addStretch(1)
        first.addWidget(QLabel("similar patches"))
        first.addWidget(self.count)
        self._facts = QWidget()
        self._facts.setLayout(facts)
        facts.setContentsMargins(0, 0, 0, 0)
        self.token, self.cell, self.corner = QLabel(), QLabel(), QLabel()
        for name, label in (
            ("Token", self.token),
            ("On the grid", self.cell),
            ("Level-0 pixels", self.corner),
        ):
            label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
            facts.addRow(name, label)
        self.similar.setColumnCount(3)
        self.similar.setHeaderLabels(["similarity", "row", "column"])
        self.similar.setRootIsDecorated(False)
        self.similar.setUniformRowHeights(True)
        self.similar.header().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.similar.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        column.addLayout(first)
        column.addWidget(self.message)
        column.addWidget(self._facts)
        column.addWidget(self.classes)
        column.addWidget(self.similar, 1)
        column.addStretch(0)

    def _connect(self) -> None:
        layers = self._viewer.layers
        for event in (
            layers.events.inserted,
            layers.events.removed,
            layers.selection.events.active,
        ):
            event.connect(self._on_layers)
        self.toggle.toggled.connect(self._on_layers)
        self.count.valueChanged.connect(self._compare)
        self.similar.itemClicked.connect(self._on_similar)

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802
        """Listen to the mouse."""
        super().showEvent(event)
        if self._on_mouse not in self._viewer.mouse_drag_callbacks:
            self._viewer.mouse_drag_callbacks.append(self._on_mouse)

    def hideEvent(self, event: QHideEvent) -> None:  # noqa: N802
        """Leave the mouse alone while another dock is in front, or this one is closed."""
        super().hideEvent(event)
        if self._on_mouse in self._viewer.mouse_drag_callbacks:
            self._viewer.mouse_drag_callbacks.remove(self._on_mouse)

    def _on_mouse(self, viewer: Any, event: Any) -> Iterator[None]:
        """Tell a click from a drag, which moves the image."""
        active = viewer.layers.selection.active
        draws = active is not None and active.mode not in ("pan_zoom", "transform")
        if not self.toggle.isChecked() or draws or event.button != 1:
            return
        pressed, place = np.array(event.pos), [event.position[n] for n in event.dims_displayed[-2:]]
        yield
        while event.type == "mouse_move":
            if np.abs(np.array(event.pos) - pressed).max() > STILL:
                return
            yield
        self.ask(*place)

    def ask(self, y: float, x: float) -> None:
        """Ask what there is at a place in the world."""
        try:
            results = self._chosen()
        except GigavimError:
            results = None
        if results is None or not results.complete:
            self._forget(self._how_to_ask())
            return
        self._question += 1
        self._later(partial(self._on_patch, results, y, x), patch_at, results, y, x)

    def _chosen(self) -> Results | None:
        """Return the run of the selected layer, or the only one; None if it is not clear.

        Raises
        ------
        StoreError
            If the store is gone or damaged by now.
        """
        stores = self._stores()
        active = self._viewer.layers.selection.active
        layer = None if active is None else stores.get(_about(active).get("store"))
        if layer is None and len(stores) == 1:
            (layer,) = stores.values()
        return None if layer is None else results_of(layer)

    def _stores(self) -> dict[str | None, Any]:
        """Return a layer of each run that is shown."""
        about = {layer: _about(layer) for layer in self._viewer.layers}
        return {
            a["store"]: layer
            for layer, a in about.items()
            if a.get("store") and a["kind"] not in KINDS
        }

    def _how_to_ask(self) -> str:
        """Say what to do, in this situation."""
        try:
            results = self._chosen()
        except GigavimError as error:
            return str(error)
        if results is None:
            return SELECT if self._stores() else OPEN
        if not results.complete:
            return NOT_YET.format(results.status)
        return CLICK if self.toggle.isChecked() else PRESS

    def _on_layers(self, event: Any = None) -> None:
        """Say what to do if that has changed; an answer stays as long as its run is shown."""
        words = self._how_to_ask()
        answered = self._results is not None and str(self._results.store.path) in self._stores()
        if words != self._told and not answered:
            self._forget(words)
        self._told = words

    def _on_patch(self, results: Results, y: float, x: float, patch: Patch | None) -> None:
        """Show what was found at a place."""
        if patch is None:
            self._forget(why_no_patch(results, y, x))
            return
        self._results, self._patch = results, patch
        self._facts.show()
        self.token.setText(f"{patch.token:,} of {len(results.grid_index):,}")
        self.cell.setText(f"row {patch.row:,}, column {patch.column:,}")
        self.corner.setText(f"x {patch.x:,}, y {patch.y:,}")
        self.classes.set_classes(patch.classes)
        mark(self._viewer, results, patch.token)
        if patch.is_readable:
            self._compare()
        else:
            self.message.setText(UNREADABLE)
            self._show_none()

    def _compare(self) -> None:
        """Find what the asked patch is like, once the features are there."""
        results, patch = self._results, self._patch
        if results is None or patch is None or not patch.is_readable:
            return
        if self._read is None or self._read[0] is not results:
            self._load(results)
            return
        self._question += 1
        table = self._read[1]
        done = partial(self._on_compared, results)
        self._later(done, compare, results, table, patch.token, self.count.value())

    def _load(self, results: Results) -> None:
        """Read the features of a run, and go on."""
        if self._reading is results:
            return
        self._reading, self._read = results, None
        self._show_none()
        rows = _Rows()
        rows.read.connect(self._on_rows)
        in_background(
            self,
            partial(_features, results, rows),
            partial(self._on_read, results),
            self._on_error,
        )

    def _on_rows(self, results: Results, count: int) -> None:
        if self._reading is results:
            self.message.setText(f"Reading features: {count / len(results.grid_index):.0%} …")

    def _on_read(self, results: Results, table: FeatureTable) -> None:
        if self._reading is results:
            self._reading, self._read = None, (results, table)
            self._compare()

    def _on_compared(self, results: Results, found: Comparison) -> None:
        """Show what the asked patch is like."""
        show_similar(self._viewer, results, found)
        tokens = found.similar.tokens[1:]
        self.similar.clear()
        for token in tokens.tolist():
            row, column = results.grid_index[token].tolist()
            words = [f"{found.similar.similarity[token]:.4f}", f"{row:,}", f"{column:,}"]
            item = QTreeWidgetItem(words)
            item.setData(0, Qt.ItemDataRole.UserRole, token)
            self.similar.addTopLevelItem(item)
        assert self._read is not None
        note = "" if self._read[1].is_held else f" {SLOW}"
        self.message.setText(f"The {len(tokens):,} most similar patches, by the cosine.{note}")

    def _on_similar(self, item: QTreeWidgetItem, _: int = 0) -> None:
        """Go to a similar patch."""
        if self._results is None:
            return
        token = item.data(0, Qt.ItemDataRole.UserRole)
        (y, x), corners = self._results.token_centres([token])[0], self._results.cell_corners(token)
        height, width = AROUND * np.ptp(corners, axis=0)
        look_at(self._viewer, Region(y, x, height, width, ""))

    def _later(self, then: Callable[[Any], None], work: Callable[..., Any], *args: Any) -> None:
        """Have something done off this thread, and show it unless something else is asked then."""
        question = self._question

        def show(found: Any) -> None:
            if question == self._question:
                then(found)

        in_background(self, partial(work, *args), show, self._on_error)

    def _on_error(self, error: BaseException) -> None:
        self._reading = None
        self._forget("No answer: the run's results cannot be read.")
        notify(error)

    def _forget(self, message: str) -> None:
        """Show no patch, and say why."""
        self._question += 1
        self._patch = self._results = None
        self.message.setText(message)
        self._facts.hide()
        self.classes.set_classes(())
        self._show_none()
        clear(self._viewer, ASKED)

    def _show_none(self) -> None:
        """Show nothing to be similar."""
        self.similar.clear()
        clear(self._viewer, SIMILAR, SIMILARITY)


class _Rows(QObject):
    """Carries the number of rows that were read to the thread of the window."""

    read = Signal(object, int)


def _features(results: Results, rows: _Rows) -> FeatureTable:
    store = results.store
    valid = store.values("tokens/valid") > 0
    on_rows = partial(rows.read.emit, results)
    return read_features(store.array("tokens/features"), valid, on_rows=on_rows)


def _about(layer: Any) -> dict[str, Any]:
    """Return what the plugin knows a layer by."""
    return layer.metadata.get("gigavim") or {}
