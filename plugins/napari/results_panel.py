"""The dock "Results": what a run found, how sure it is of it, and where to look."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from napari.qt.threading import create_worker
from napari.utils.colormaps import DirectLabelColormap
from napari.utils.notifications import show_info
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)
from superqt import QLabeledDoubleSlider

from gigavim.errors import GigavimError
from gigavim.ngff import Colour
from gigavim.plugins.napari.class_list import ClassList
from gigavim.plugins.napari.notify import notify
from gigavim.plugins.napari.picture import save_overlay, save_view
from gigavim.plugins.napari.region_bar import RegionBar
from gigavim.plugins.napari.regions import look_at, order_of, regions_of
from gigavim.plugins.napari.results import Results, results_of
from gigavim.plugins.napari.run_box import RunBox
from gigavim.plugins.napari.threshold import HeadMap, NucleiMap, read_map
from gigavim.plugins.napari.window import keep_fresh, load_view

LOOK_AGAIN_MS = 2000
"""At a run that is not complete."""


class ResultsPanel(QWidget):
    """Shows one class map of one run at a time: that of the selected layer, else the first."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        # Widgets get the viewer in a wrapper, and layers from that in wrappers of their own.
        self._viewer = getattr(napari_viewer, "__wrapped__", napari_viewer)
        self._results: Results | None = None
        self._map: HeadMap | None = None
        self._shown: tuple[Results | None, str | None] = (None, None)
        self.message = QLabel()
        self.message.setWordWrap(True)
        self.run, self.head = _chooser(), _chooser()
        self.classes = ClassList()
        self.opacity = _slider("Of the class map")
        self.threshold = _slider(
            "Cells whose highest probability is lower are left out of map and table;\n"
            "the store stays as it is"
        )
        self.regions = RegionBar()
        self.save_view, self.save_overlay = QPushButton("Save view…"), QPushButton("Save overlay…")
        self.save_view.setToolTip("A PNG of what is seen, with legend and scale bar")
        self.save_overlay.setToolTip("A PNG of the whole image beside the class map as it is now")
        self.about = RunBox()
        self._clock = QTimer(self)
        self._clock.setInterval(LOOK_AGAIN_MS)
        self._lay_out()
        self._connect()
        self._on_active()

    def _lay_out(self) -> None:
        """Put everything in one column that scrolls."""
        choice, sliders, pictures = QFormLayout(), QFormLayout(), QHBoxLayout()
        choice.addRow("Run", self.run)
        choice.addRow("Map", self.head)
        sliders.addRow("Opacity", self.opacity)
        sliders.addRow("Probability ≥", self.threshold)
        pictures.addWidget(self.save_view)
        pictures.addWidget(self.save_overlay)
        self._of_map = QWidget()
        of_map = QVBoxLayout(self._of_map)
        of_map.setContentsMargins(0, 0, 0, 0)
        of_map.addWidget(self.classes)
        of_map.addLayout(sliders)
        of_map.addWidget(self.regions)
        of_map.addLayout(pictures)
        content = QWidget()
        column = QVBoxLayout(content)
        column.addLayout(choice)
        column.addWidget(self.message)
        column.addWidget(self._of_map)
        column.addWidget(self.about)
        column.addStretch(1)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QScrollArea.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(content)
        around = QVBoxLayout(self)
        around.setContentsMargins(0, 0, 0, 0)
        around.addWidget(scroll)

    def _connect(self) -> None:
        """Listen to the viewer and to what a person does."""
        layers = self._viewer.layers
        layers.events.inserted.connect(self._on_layers)
        layers.events.removed.connect(self._on_layers)
        layers.selection.events.active.connect(self._on_active)
        self.run.activated.connect(self._on_chosen)
        self.head.activated.connect(self._on_chosen)
        self.classes.toggled.connect(self._on_toggled)
        self.classes.itemSelectionChanged.connect(self._offer_regions)
        self.opacity.valueChanged.connect(self._on_opacity)
        self.threshold.valueChanged.connect(self._on_threshold)
        self.regions.visited.connect(partial(look_at, self._viewer))
        self.about.visited.connect(partial(look_at, self._viewer))
        self.save_view.clicked.connect(self._on_save_view)
        self.save_overlay.clicked.connect(self._on_save_overlay)
        self._clock.timeout.connect(self.refresh)

    def refresh(self) -> None:
        """Bring the panel up to date with the layers, and with stores that runs go on in."""
        stores = [store for store, _ in map(_of, self._viewer.layers) if store]
        _offer(self.run, list(dict.fromkeys(stores)))
        results, fault = None, "Open the .gigavim.zarr of a run: its class maps show here."
        try:
            results = self._open()
        except GigavimError as error:
            fault = str(error)
        _offer(self.head, self._heads(results))
        if results is not None and self.head.count() == 0:
            fault = "This run has no finished class map among the layers."
        if results is not self._results or (results and not results.complete):
            self._results = results
            self.about.set_results(results)
        if results is None or results.complete:
            self._clock.stop()
        else:
            self._clock.start()
        self.message.setText(fault)
        self.message.setVisible(self.head.count() == 0)
        self._of_map.setVisible(self.head.count() > 0)
        if self._shown != (results, self.head.currentData()):
            self._shown = (results, self.head.currentData())
            self._show_map()

    def _open(self) -> Results | None:
        """Return the results of the run that is chosen."""
        for layer in self._viewer.layers:
            if _of(layer)[0] == self.run.currentData() is not None:
                return results_of(layer)
        return None

    def _heads(self, results: Results | None) -> list[str]:
        """Return the class maps of the run that are among the layers."""
        finished = results.heads if results else ()
        store = self.run.currentData()
        return [head for head in finished if self._layer_of(store, head) is not None]

    def _layer_of(self, store: str, head: str | None) -> Any | None:
        """Return the layer of a class map."""
        for layer in self._viewer.layers:
            if _of(layer) == (store, head) and layer.metadata["gigavim"]["kind"] == "classes":
                return layer
        return None

    @property
    def _layer(self) -> Any | None:
        """The layer of the class map that is shown here."""
        return self._layer_of(self.run.currentData(), self.head.currentData())

    def _on_layers(self, event: Any) -> None:
        self.refresh()

    def _on_active(self, event: Any = None) -> None:
        """Follow the selected layer."""
        store, head = _of(self._viewer.layers.selection.active)
        self.refresh()
        for chooser, wanted in ((self.run, store), (self.head, head)):
            if wanted and chooser.findData(wanted) >= 0:
                chooser.setCurrentIndex(chooser.findData(wanted))
                self.refresh()

    def _on_chosen(self) -> None:
        """Show the class map that was chosen, and no other, which would mix with it."""
        self.refresh()
        for layer in self._viewer.layers:
            if (layer.metadata.get("gigavim") or {}).get("kind") == "classes":
                layer.visible = _of(layer) == (self.run.currentData(), self.head.currentData())

    def _show_map(self) -> None:
        """Show another class map; what it takes from the disk comes later."""
        results, head = self._shown
        layer, self._map = self._layer, None
        self._offer_regions()
        for widget in (self.threshold, self.save_overlay):
            widget.setEnabled(False)
        if results is None or head is None or layer is None:
            return
        names, colours = results.classes(head)
        self.classes.set_classes(names, colours, hidden_classes(layer))
        self.opacity.setValue(layer.opacity)
        worker = create_worker(read_map, results, head)
        worker.returned.connect(partial(self._on_map, self._shown))
        worker.errored.connect(notify)
        worker.start()

    def _on_map(self, wanted: tuple[Results | None, str | None], found: HeadMap) -> None:
        """Show how large the classes are, unless something else is chosen by now."""
        layer = self._layer
        if wanted != self._shown or layer is None:
            return
        self._map = found
        if self.classes.chosen is None:
            self.classes.selectRow(int(found.sizes(0).argmax()))
        self.save_overlay.setEnabled(True)
        self.threshold.setEnabled(found.best is not None)
        self.threshold.blockSignals(True)
        self.threshold.setValue(self._threshold)
        self.threshold.blockSignals(False)
        self._show_amounts()

    @property
    def _threshold(self) -> float:
        """What the shown layer was last cut off at."""
        layer = self._layer
        return 0.0 if layer is None else float(layer.metadata["gigavim"].get("threshold", 0.0))

    def _show_amounts(self) -> None:
        """Let the table follow the threshold."""
        if self._map is not None:
            self.classes.set_amounts(self._map.columns, self._map.rows(self._threshold))
            self._offer_regions()

    def _offer_regions(self) -> None:
        """Lead through the regions of the selected class."""
        chosen, found, (results, head) = self.classes.chosen, self._map, self._shown
        if chosen is None or found is None or results is None or head is None:
            self.regions.set_finder(None)
            return
        find = partial(regions_of, results, head, found, chosen, self._threshold)
        self.regions.set_finder(find, found.names[chosen - 1], order_of(found))

    def _on_toggled(self, label: int, is_shown: bool) -> None:
        layer = self._layer
        if layer is not None:
            show_class(layer, label, is_shown)

    def _on_opacity(self, opacity: float) -> None:
        layer = self._layer
        if layer is not None:
            layer.opacity = opacity

    def _on_threshold(self, threshold: float) -> None:
        """Make the class map anew, in the viewer alone."""
        layer = self._layer
        if layer is None or self._map is None:
            return
        layer.metadata["gigavim"]["threshold"] = threshold
        levels = self._map.levels(threshold, len(layer.data) if layer.multiscale else 1)
        layer.data = levels if layer.multiscale else np.asarray(levels[0])
        if isinstance(self._map, NucleiMap):
            keep_fresh(layer, self._map.pixels)
            keep_fresh(layer, self._map.probabilities)
        self._show_amounts()

    def _title(self) -> str:
        """Say what a picture is of."""
        results, head = self._shown
        assert results is not None  # pictures are offered of results alone
        model = results.store.attributes["model"]["id"]
        above = f", probability ≥ {self._threshold:.2f}" if self._threshold else ""
        return f"{Path(results.source).name}: {head} by {model}{above}"

    def _on_save_view(self) -> None:
        path, results = self._ask_path("view"), self._results
        if not path or results is None:
            return
        load_view(self._viewer)
        try:
            save_view(self._viewer, path, results.unit, self.legend(), self._title())
        except GigavimError as error:
            notify(error)
        else:
            show_info(f"{path} is written")

    def legend(self) -> list[tuple[Colour, str, str]]:
        """Return colour, name and size of the classes that are shown."""
        layer, found = self._layer, self._map
        if layer is None or found is None or not layer.visible:
            return []
        hidden = hidden_classes(layer)
        sizes, rows = found.sizes(self._threshold), found.rows(self._threshold)
        return [
            (found.colours[row], found.names[row], f"{words[0]} {found.columns[0]}")
            for row, words in enumerate(rows)
            if row + 1 not in hidden and sizes[row] > 0
        ]

    def _on_save_overlay(self) -> None:
        path, results, found, layer = (
            self._ask_path("overlay"),
            self._results,
            self._map,
            self._layer,
        )
        if not path or results is None or found is None or layer is None:
            return
        worker = create_worker(
            save_overlay,
            results,
            found,
            self._threshold,
            hidden_classes(layer),
            path,
            self._title(),
        )
        worker.returned.connect(lambda _: show_info(f"{path} is written"))
        worker.errored.connect(notify)
        worker.start()

    def _ask_path(self, what: str) -> str:
        """Ask where to write a picture; nothing where the person thinks better of it."""
        name = f"{self.run.currentText()}.{self.head.currentText()}.{what}.png"
        path, _ = QFileDialog.getSaveFileName(self, "Save a picture", name, "PNG (*.png)")
        return str(path)


def hidden_classes(layer: Any) -> set[int]:
    """Return the classes that a class map's layer does not show."""
    return {
        label for label, colour in layer.colormap.color_dict.items()
        if label and colour[3] == 0
    }  # fmt: skip


def show_class(layer: Any, label: int, is_shown: bool) -> None:
    """Show or hide a class of a class map's layer; its data stay."""
    colours = dict(layer.colormap.color_dict)
    colours[label] = (*colours[label][:3], float(is_shown))
    layer.colormap = DirectLabelColormap(color_dict=colours)


def _of(layer: Any) -> tuple[str | None, str | None]:
    """Return the store and head that a layer shows."""
    ours = (layer.metadata.get("gigavim") if layer is not None else None) or {}
    return ours.get("store"), ours.get("head")


def _offer(chooser: QComboBox, names: list[str]) -> None:
    """Let a person choose among other things; what was chosen stays so where it can."""
    if names == [chooser.itemData(row) for row in range(chooser.count())]:
        return
    chosen = chooser.currentData()
    chooser.clear()
    for name in names:
        chooser.addItem(Path(name).name.removesuffix(".zarr").removesuffix(".gigavim"), name)
        chooser.setItemData(chooser.count() - 1, name, Qt.ItemDataRole.ToolTipRole)
    chooser.setCurrentIndex(max(0, chooser.findData(chosen)) if names else -1)


def _chooser() -> QComboBox:
    """Return a box that long names do not make broad."""
    chooser = QComboBox()
    chooser.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    return chooser


def _slider(tooltip: str) -> QLabeledDoubleSlider:
    """Return a slider from 0 to 1."""
    slider = QLabeledDoubleSlider(Qt.Orientation.Horizontal)
    slider.setRange(0, 1)
    slider.setSingleStep(0.01)  # type: ignore[arg-type]
    slider.setDecimals(2)
    slider.setToolTip(tooltip)
    return slider
