"""The dock "Annotate and teach": a few shapes with classes, and what they make of the image."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from napari.utils.notifications import show_warning
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QDoubleSpinBox,
    QFormLayout,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
)

from gigavim.annotations import Annotation
from gigavim.errors import GigavimError
from gigavim.plugins.napari.annotation_layer import (
    CLASS,
    KIND,
    OUTLINE,
    add_annotations,
    annotations_in,
    draw_with,
    name_shapes,
    new_annotation_layer,
    paint,
)
from gigavim.plugins.napari.background import in_background
from gigavim.plugins.napari.class_editor import ClassEditor
from gigavim.plugins.napari.notify import notify
from gigavim.plugins.napari.panel import Panel
from gigavim.plugins.napari.probe_map import (
    Taught,
    kind_of,
    show_taught,
    stem_of,
    store_of,
    teach,
)
from gigavim.plugins.napari.results import Results, results_of
from gigavim.plugins.napari.teach_files import TeachFiles
from gigavim.probe import Encoded

AFTER_MS = 400
"""From the last change of a shape to a new fit."""
TOOLS = {
    "Stroke": ("add_path", "Draw with the button held down; what the pen crosses counts"),
    "Polygon": ("add_polygon", "Click the corners, and twice for the last"),
    "Lasso": ("add_polygon_lasso", "Draw around with the button held down"),
    "Box": ("add_rectangle", "Draw from corner to corner"),
    "Ellipse": ("add_ellipse", "Draw from corner to corner"),
    "Select": ("select", "Choose shapes, move them, delete them with the key Delete"),
}
"""Modes of napari's layers of shapes, and how they are used."""


class TeachPanel(Panel):
    """Draws shapes with classes, fits a probe on the features under them, and shows its map.

    It works on the store of the selected layer, else on the only one there is.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self._encoded: tuple[Results, Encoded] | None = None
        self._taught: tuple[Results, Taught] | None = None
        self._is_fitting = self._is_due = False
        self._results: Results | None = None
        self._layer: Any = None
        self._listened: Any = None
        self._pen_of: str | None = None
        self.message, self.status = QLabel(), QLabel()
        for label in (self.message, self.status):
            label.setWordWrap(True)
        self.classes = ClassEditor()
        self.add_class, self.remove_class, self.give_class = (
            QPushButton("Add"), QPushButton("Remove"), QPushButton("Give to selected"),
        )  # fmt: skip
        self.give_class.setToolTip("Give the selected shapes this class")
        self.tools = {name: QPushButton(name) for name in TOOLS}
        self.pen = QDoubleSpinBox()
        self.pen.setRange(0, 1e6)
        self.pen.setToolTip("Patches that a stroke of this width touches are learned from")
        self.fit, self.follow = QPushButton("Fit"), QCheckBox("again when a shape changes")
        self.follow.setChecked(True)
        self.files = TeachFiles()
        self._clock = QTimer(self)
        self._clock.setSingleShot(True)
        self._clock.setInterval(AFTER_MS)
        self._lay_out()
        for _ in range(2):
            self.classes.add()
        self.classes.setCurrentCell(0, 0)
        self._connect()
        self.refresh()

    def _lay_out(self) -> None:
        column, editing, tools = QVBoxLayout(self), QHBoxLayout(), QGridLayout()
        pen, fitting = QFormLayout(), QHBoxLayout()
        for button in (self.add_class, self.remove_class, self.give_class):
            editing.addWidget(button)
        for number, (name, button) in enumerate(self.tools.items()):
            button.setToolTip(TOOLS[name][1])
            tools.addWidget(button, *divmod(number, 3))
        pen.addRow("Width of strokes", self.pen)
        fitting.addWidget(self.fit)
        fitting.addWidget(self.follow)
        fitting.addStretch()
        column.addWidget(self.message)
        column.addWidget(self.classes)
        for layout in (editing, tools, pen, fitting):
            column.addLayout(layout)
        column.addWidget(self.status)
        column.addWidget(self.files)
        column.addStretch()

    def _connect(self) -> None:
        layers = self._viewer.layers
        for event in (
            layers.events.inserted, layers.events.removed, layers.selection.events.active,
        ):  # fmt: skip
            event.connect(self._on_layers)
        self.classes.currentCellChanged.connect(self._on_pen)
        self.classes.changed.connect(self._on_classes)
        self.classes.renamed.connect(self._on_renamed)
        self.classes.refused.connect(show_warning)
        self.add_class.clicked.connect(lambda: self.classes.add())
        self.remove_class.clicked.connect(lambda: self.classes.remove_current(self._shapes()))
        self.give_class.clicked.connect(self._on_give)
        for name, button in self.tools.items():
            button.clicked.connect(partial(self.draw, name))
        self.pen.valueChanged.connect(self._on_pen)
        self._clock.timeout.connect(self._on_due)
        self.fit.clicked.connect(self._fit)
        self.files.loaded.connect(self._on_loaded)

    def refresh(self) -> None:
        """Bring the panel up to date with the layers."""
        self._results, self._layer = None, None
        try:
            self._results = chosen_results(self._viewer)
            words = (
                "Select a layer of the results that you mean: there are several."
                if any(map(store_of, self._viewer.layers))
                else "Open the .gigavim.zarr of a run: its features are what is taught on."
            )
        except (GigavimError, OSError, KeyError) as error:
            words = str(error)
        results = self._results
        if results is not None:
            self._layer = chosen_layer(self._viewer, results)
            drawn_in = "No annotations yet" if self._layer is None else self._layer.name
            words = f"{drawn_in} · {stem_of(results)}"
            self._set_pen(results)
        self.message.setText(words)
        for button in self.tools.values():
            button.setEnabled(results is not None)
        for widget in (self.fit, self.give_class):
            widget.setEnabled(self._layer is not None)
        annotations = None if self._layer is None else self._annotations
        self.files.offer(results, annotations, self._fitted)
        self._listen(self._layer)
        self._show_amounts()

    def draw(self, tool: str) -> None:
        """Begin to draw with the class that is chosen, in a new layer where there is none."""
        if self._results is None:
            return
        layer = self._layer or new_annotation_layer(self._results, "annotations")
        if layer not in self._viewer.layers:
            self._viewer.add_layer(layer)
        layer.mode = "pan_zoom"  # ends what was being drawn
        layer.selected_data = set()
        self._viewer.layers.selection.active = layer
        layer.mode = TOOLS[tool][0]
        self._on_pen()

    def _set_pen(self, results: Results) -> None:
        """Make the pen as wide as a patch of another store, in its unit."""
        if self._pen_of != str(results.store.path):
            self._pen_of = str(results.store.path)
            side = _cell(results) * results.spacing[0]
            self.pen.blockSignals(True)
            self.pen.setDecimals(6 if side < 0.1 else 1)
            self.pen.setSuffix(f" {'m' if results.unit == 'metre' else results.unit}")
            self.pen.setSingleStep(side / 4)
            self.pen.setValue(side)
            self.pen.blockSignals(False)

    def _on_pen(self) -> None:
        """Have what is drawn next be of the chosen class, as wide as was asked for."""
        results, layer = self._results, self._layer
        if results is None or layer is None:
            return
        is_line = layer.mode in ("add_path", "add_line", "add_polyline")
        width = self.pen.value() / results.spacing[0] if is_line else OUTLINE * _cell(results)
        name = self.classes.current
        draw_with(layer, name, self.classes.colours[name], width)

    def _on_layers(self, event: Any) -> None:
        self.refresh()

    def _listen(self, layer: Any | None) -> None:
        """Hear of the shapes of one layer."""
        if layer is not self._listened:
            if self._listened is not None:
                self._listened.events.data.disconnect(self._on_shapes)
                self._listened.events.mode.disconnect(self._on_mode)
            if layer is not None:
                layer.events.data.connect(self._on_shapes)
                layer.events.mode.connect(self._on_mode)
            self._listened = layer

    def _on_mode(self, event: Any) -> None:
        self._on_pen()

    def _on_shapes(self, event: Any) -> None:
        if str(getattr(event.action, "value", event.action)) in ("added", "changed", "removed"):
            self._show_amounts()
            self._clock.start()

    def _on_classes(self) -> None:
        layer = self._layer
        if layer is not None:
            paint(layer, self.classes.colours)
        self._on_pen()
        self._show_amounts()
        self._clock.start()

    def _on_renamed(self, old: str, new: str) -> None:
        for layer in self._viewer.layers:
            if kind_of(layer) == KIND:
                own = [row for row, name in enumerate(layer.features[CLASS]) if name == old]
                name_shapes(layer, own, new, self.classes.colours)

    def _on_give(self) -> None:
        layer = self._layer
        if layer is not None and layer.selected_data:
            name_shapes(
                layer, sorted(layer.selected_data), self.classes.current, self.classes.colours
            )
            self._show_amounts()
            self._clock.start()
        else:
            show_warning("no shape is selected; choose some with the tool Select")

    def _shapes(self) -> Counter[str]:
        """Return how many shapes have each class."""
        layer = self._layer
        return Counter() if layer is None else Counter(map(str, layer.features[CLASS]))

    def _annotations(self) -> list[Annotation]:
        """Return the shapes that are worked on."""
        return annotations_in(self._layer, self.classes.colours)

    @property
    def _fitted(self) -> Taught | None:
        """What these results were taught last."""
        if self._results is None or self._taught is None:
            return None
        results, taught = self._taught
        return taught if results.store.path == self._results.store.path else None

    def _show_amounts(self) -> None:
        """Write how much there is of each class: shapes as they are, the others as last fitted."""
        fitted = self._fitted.amounts if self._fitted is not None else {}
        shapes = self._shapes()
        self.classes.set_amounts(
            {name: (str(count), *fitted.get(name, ("", ""))) for name, count in shapes.items()}
        )

    def _on_due(self) -> None:
        if self.follow.isChecked():
            self._fit()

    def _fit(self) -> None:
        """Fit on the shapes as they are, in another thread, one fit after the other."""
        results, layer = self._results, self._layer
        if results is None or layer is None:
            return
        if self._is_fitting:
            self._is_due = True
            return
        self._is_fitting = True
        self.status.setText("fitting …")
        known = self._encoded
        encoded = known[1] if known is not None and known[0] is results else None
        annotations = self._annotations()
        in_background(
            self,
            lambda: teach(results, encoded, annotations),
            partial(self._on_taught, results),
            self._on_fault,
        )

    def _on_taught(self, results: Results, taught: Taught) -> None:
        self._encoded = results, taught.encoded
        self._taught = results, taught
        show_taught(self._viewer, results, taught)
        self.refresh()
        self._end_fit(taught.words)

    def _on_fault(self, error: Exception) -> None:
        """Say what is missing where one is looking; it is no fault to have drawn one class yet."""
        self._end_fit(str(error))
        if not isinstance(error, GigavimError):
            notify(error)

    def _end_fit(self, words: str) -> None:
        """Say how it went, and begin again if shapes have changed meanwhile."""
        self._is_fitting = False
        self.status.setText(words)
        if self._is_due:
            self._is_due = False
            self._fit()

    def _on_loaded(self, results: Results, name: str, annotations: list[Annotation]) -> None:
        """Show annotations in a layer of their own."""
        for each in annotations:
            if each.name not in self.classes.colours:
                self.classes.add(each.name, each.colour)
        layer = new_annotation_layer(results, name)
        add_annotations(layer, annotations, self.classes.colours, _cell(results))
        self._viewer.add_layer(layer)
        self._clock.start()


def _cell(results: Results) -> float:
    """Return the height of a cell of the grid, in level-0 pixels."""
    return float(results.store.attributes["grid"]["cell_level0"][0])


def chosen_results(viewer: Any) -> Results | None:
    """Return the results that are taught on: of the selected layer, else the only ones.

    Raises
    ------
    GigavimError
        If their store is gone or damaged.
    """
    active = viewer.layers.selection.active
    if store_of(active) is not None:
        return results_of(active)
    stores = {store_of(layer): layer for layer in viewer.layers if store_of(layer)}
    return results_of(*stores.values()) if len(stores) == 1 else None


def chosen_layer(viewer: Any, results: Results) -> Any | None:
    """Return the annotations that are worked on: the selected layer, else the store's last."""
    own = [
        layer for layer in viewer.layers
        if kind_of(layer) == KIND and store_of(layer) == str(results.store.path)
    ]  # fmt: skip
    active = viewer.layers.selection.active
    return active if active in own else own[-1] if own else None
