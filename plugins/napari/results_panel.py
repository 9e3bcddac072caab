"""The dock "Results": what a run found, how sure it is of it, and where to look."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QLabel,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from gigavim.errors import GigavimError
from gigavim.plugins.napari.background import in_background
from gigavim.plugins.napari.class_list import ClassList
from gigavim.plugins.napari.panel import Panel
from gigavim.plugins.napari.picture_bar import PictureBar
from gigavim.plugins.napari.region_bar import RegionBar
from gigavim.plugins.napari.regions import look_at, order_of, regions_of
from gigavim.plugins.napari.results import Results, results_of
from gigavim.plugins.napari.run_box import RunBox, breakable
from gigavim.plugins.napari.shown import Shown, hidden_classes, show_class
from gigavim.plugins.napari.threshold import HeadMap, read_map
from gigavim.plugins.napari.unit_slider import UnitSlider

LOOK_AGAIN_MS = 2000
"""At a run that is not complete."""

CUT = """Cells whose highest probability is lower are left out of map and table;
the store stays as it is"""
NOT_CUT = "This map has no probabilities"


class ResultsPanel(Panel):
    """Shows one class map of one run at a time: that of the selected layer, else the first."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self._results: Results | None = None
        self._shown: Shown | None = None
        self._wanted: tuple[Results | None, str | None] = (None, None)
        self.message = QLabel()
        self.message.setWordWrap(True)
        self.run, self.head = _chooser(), _chooser()
        self.classes = ClassList()
        self.opacity = UnitSlider("Of the class map")
        self.threshold = UnitSlider(CUT)
        self.regions = RegionBar()
        self.pictures = PictureBar(self._viewer)
        self.about = RunBox()
        self._clock = QTimer(self)
        self._clock.setInterval(LOOK_AGAIN_MS)
        self._lay_out()
        self._connect()
        self._on_active()

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
        self.message.setText(breakable(fault))
        self.message.setVisible(self.head.count() == 0)
        self._of_map.setVisible(self.head.count() > 0)
        if self._wanted != (results, self.head.currentData()):
            self._wanted = (results, self.head.currentData())
            self._load()

    def _lay_out(self) -> None:
        """Put everything in one column that scrolls."""
        choice, sliders = QFormLayout(), QFormLayout()
        choice.addRow("Run", self.run)
        choice.addRow("Map", self.head)
        sliders.addRow("Opacity", self.opacity)
        sliders.addRow("Probability ≥", self.threshold)
        self._of_map = QWidget()
        of_map = QVBoxLayout(self._of_map)
        of_map.setContentsMargins(0, 0, 0, 0)
        of_map.addWidget(self.classes)
        of_map.addLayout(sliders)
        of_map.addWidget(self.regions)
        of_map.addWidget(self.pictures)
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
        self.opacity.changed.connect(self._on_opacity)
        self.threshold.changed.connect(self._on_threshold)
        self.regions.visited.connect(partial(look_at, self._viewer))
        self.about.visited.connect(partial(look_at, self._viewer))
        self._clock.timeout.connect(self.refresh)

    def _open(self) -> Results | None:
        """Return the results of the run that is chosen."""
        for layer in self._viewer.layers:
            if _of(layer)[0] == self.run.currentData() is not None:
                return results_of(layer)
        return None

    def _heads(self, results: Results | None) -> list[str]:
        """Return the class maps of the run that are among the layers."""
        finished = results.heads if results else ()
        return [head for head in finished if self._layer_of(head) is not None]

    def _layer_of(self, head: str | None) -> Any | None:
        """Return the layer of a class map of the run that is chosen."""
        for layer in self._viewer.layers:
            if _is_class_map(layer) and _of(layer) == (self.run.currentData(), head):
                return layer
        return None

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
        """Show and select the class map that was chosen, and no other, which would mix with it."""
        self.refresh()
        chosen = self._layer_of(self.head.currentData())
        for layer in self._viewer.layers:
            if _is_class_map(layer):
                layer.visible = layer is chosen
        if chosen is not None:
            self._viewer.layers.selection.active = chosen

    def _load(self) -> None:
        """List the classes of another map; what takes reading comes later."""
        results, head = self._wanted
        layer = self._layer_of(head)
        self._set_shown(None)
        if results is None or head is None or layer is None:
            return
        names, colours = results.classes(head)
        self.classes.set_classes(names, colours, hidden_classes(layer))
        self.opacity.set_value(layer.opacity)
        layer.events.opacity.connect(self._on_layer_opacity)
        in_background(self, partial(read_map, results, head), partial(self._on_map, results, head))

    def _on_map(self, results: Results, head: str, found: HeadMap) -> None:
        """Say how large the classes are, unless something else is chosen by now."""
        layer = self._layer_of(head)
        if (results, head) == self._wanted and layer is not None:
            self._set_shown(Shown(results, head, found, layer))
            if self.classes.chosen is None:
                self.classes.selectRow(int(found.sizes(0).argmax()))

    def _set_shown(self, shown: Shown | None) -> None:
        """Offer what can be done with a class map."""
        self._shown = shown
        self.pictures.set_shown(shown)
        can_be_cut = shown is not None and shown.map.best is not None
        self.threshold.setEnabled(can_be_cut)
        self.threshold.setToolTip(CUT if can_be_cut else NOT_CUT)
        if shown is not None:
            self.threshold.set_value(shown.threshold)
        self._show_amounts()

    def _show_amounts(self) -> None:
        """Let table and regions follow the threshold."""
        if self._shown is not None:
            found = self._shown.map
            self.classes.set_amounts(found.columns, found.rows(self._shown.threshold))
        self._offer_regions()

    def _offer_regions(self) -> None:
        """Lead through the regions of the selected class."""
        chosen, shown = self.classes.chosen, self._shown
        if chosen is None or shown is None:
            self.regions.set_finder(None)
            return
        found = shown.map
        find = partial(regions_of, shown.results, shown.head, found, chosen, shown.threshold)
        self.regions.set_finder(find, found.names[chosen - 1], order_of(found))

    def _on_toggled(self, label: int, is_shown: bool) -> None:
        layer = self._layer_of(self.head.currentData())
        if layer is not None:
            show_class(layer, label, is_shown)

    def _on_opacity(self, opacity: float) -> None:
        layer = self._layer_of(self.head.currentData())
        if layer is not None:
            layer.opacity = opacity

    def _on_layer_opacity(self, event: Any) -> None:
        layer = self._layer_of(self.head.currentData())
        if layer is not None:
            self.opacity.set_value(layer.opacity)

    def _on_threshold(self, threshold: float) -> None:
        if self._shown is not None:
            self._shown.cut(threshold)
            self._show_amounts()


def _of(layer: Any) -> tuple[str | None, str | None]:
    """Return the store and head that a layer shows."""
    ours = (layer.metadata.get("gigavim") if layer is not None else None) or {}
    return ours.get("store"), ours.get("head")


def _is_class_map(layer: Any) -> bool:
    return (layer.metadata.get("gigavim") or {}).get("kind") == "classes"


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
