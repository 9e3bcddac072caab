"""The dock "Run here": map the image, or a part of it, while one looks at it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QEvent, QObject, QStandardPaths, QTimer
from qtpy.QtWidgets import (
    QApplication,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMessageBox,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from gigavim.errors import GigavimError
from gigavim.plugins.napari.areas import Polygon, drawn, viewed
from gigavim.plugins.napari.follow import Follower, follow, words_of
from gigavim.plugins.napari.launch import Request, Run, launch
from gigavim.plugins.napari.panel import Panel
from gigavim.store import RunProgress

EVERY_MS = 200
"""From one look at the process to the next."""
WHOLE, VIEW = "The whole image", "What the view shows"
SUITED, FILE = "The one that suits the image", "A file…"


class RunPanel(Panel):
    """Starts one run at a time, shows how far it is, and stops it when asked."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self._thread = ThreadPoolExecutor(thread_name_prefix="gigavim-run")
        self._waiting: list[tuple[Future[Any], Callable[[Any], None]]] = []
        self._run: Run | None = None
        self._described: str | None = None
        """The image that the rest of the form is for."""
        self._follower: Follower | None = None
        self._build()
        layers = self._viewer.layers
        for event in (
            layers.events.inserted,
            layers.events.removed,
            layers.selection.events.active,
        ):
            event.connect(self._on_layers)
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._on_time)
        self._timer.start(EVERY_MS)
        for watched in (self._window, self._viewer.window._qt_viewer):
            watched.installEventFilter(self)
        application = QApplication.instance()
        assert application is not None  # a widget has one
        application.aboutToQuit.connect(self._end)
        self._later(_models, self._on_models)
        self._on_layers()

    def _build(self) -> None:
        """Make what there is to see."""
        self.image, self.area, self.model = QComboBox(), QComboBox(), QComboBox()
        self.model.addItem(SUITED, None)
        self.model.addItem(FILE, FILE)
        self.spacing = QDoubleSpinBox()
        self.spacing.setRange(0.0, 1e6)
        self.spacing.setDecimals(4)
        self.spacing.setSpecialValueText("as the model was trained")
        self.folder = QLineEdit()
        self.browse = QPushButton("…")
        self.start_over = QCheckBox("Start over, whatever is there")
        self.start, self.stop = QPushButton("Run"), QPushButton("Stop")
        self.bar = QProgressBar()
        self.message = QLabel()
        self.message.setWordWrap(True)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow("Image", self.image)
        form.addRow("Area", self.area)
        form.addRow("Model", self.model)
        form.addRow("Pixel size", self.spacing)
        form.addRow("Results in", _beside(self.folder, self.browse))
        form.addRow("", self.start_over)
        column = QVBoxLayout(self)
        column.addLayout(form)
        column.addLayout(_row(self.start, self.stop))
        column.addWidget(self.bar)
        column.addWidget(self.message)
        column.addStretch()
        self.image.currentIndexChanged.connect(self._on_image)
        self.model.activated.connect(self._on_model)
        self.browse.clicked.connect(self._choose_folder)
        self.start.clicked.connect(self._on_start)
        self.stop.clicked.connect(self._on_stop)
        for chooser in (self.image, self.area, self.model):
            # A long name must not widen the dock.
            chooser.setSizeAdjustPolicy(
                QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
            )
            chooser.setMinimumContentsLength(12)
            chooser.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._show_idle()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """Ask before the window closes while a run goes on."""
        if event.type() == QEvent.Type.Close and watched is not self._window:
            self._end()  # a script closes the viewer, and there is nobody to ask
        if event.type() != QEvent.Type.Close or self._run is None or self._may_close(self._run):
            return False
        event.ignore()
        return True

    def _may_close(self, run: Run) -> bool:
        """Ask what becomes of the run; tell whether the window may close."""
        box = QMessageBox(self)
        box.setWindowTitle("A run goes on")
        box.setText(f"{run.store.name} is still being made.")
        box.setInformativeText("A run that is stopped is continued by the same run, here or later.")
        stop = box.addButton("Stop it", QMessageBox.ButtonRole.AcceptRole)
        leave = box.addButton("Let it go on", QMessageBox.ButtonRole.DestructiveRole)
        box.addButton("Stay", QMessageBox.ButtonRole.RejectRole)
        box.exec_()
        if box.clickedButton() is stop:
            self._end()
        elif box.clickedButton() is leave:
            self._run = None
        return box.clickedButton() in (stop, leave)

    def _end(self) -> None:
        """End the run, if there is one, before there is nobody to watch it."""
        if self._run is not None:
            run, self._run = self._run, None
            run.stop()
            run.ended()

    def _on_layers(self, event: Any = None) -> None:
        """Offer what can be run; the selected image first."""
        del event
        images = dict.fromkeys(_source(layer) for layer in self._viewer.layers if _source(layer))
        active = self._viewer.layers.selection.active
        wanted = (_source(active) if active is not None else "") or self.image.currentData()
        _refill(self.image, [(Path(source).name, source) for source in images], wanted)
        shapes = [(f"Shapes of {s.name}", s.name) for s in self._viewer.layers if _is_shapes(s)]
        _refill(self.area, [(WHOLE, WHOLE), (VIEW, VIEW), *shapes], self.area.currentData())
        self._on_image()

    def _on_image(self) -> None:
        """Follow the choice of the image with what depends on it."""
        source = self.image.currentData()
        self.start.setEnabled(source is not None and self._run is None)
        if source is None:
            self.message.setText("Open a slide or a scene first.")
            return
        if source == self._described:
            return
        self._described = source
        if self._run is None:
            self.message.setText("")
        self.folder.setText(str(output_folder(source)))
        layer = next(layer for layer in self._viewer.layers if _source(layer) == source)
        units = {str(unit) for unit in layer.units}
        self.spacing.setSuffix(" µm" if "micrometer" in units else "")

    def _on_models(self, names: list[str]) -> None:
        """Offer the models that are here."""
        for name in names:
            self.model.insertItem(self.model.count() - 1, name, name)

    def _on_model(self) -> None:
        """Let a file be chosen where that is wanted."""
        if self.model.currentData() != FILE:
            return
        path, _ = QFileDialog.getOpenFileName(
            self, "A model", "", "Models (*.safetensors *.pth *.pt *.ckpt);;All files (*)"
        )
        if path:
            self.model.insertItem(self.model.count() - 1, Path(path).name, path)
        self.model.setCurrentIndex(self.model.count() - 2 if path else 0)

    def _choose_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Results in", self.folder.text())
        if path:
            self.folder.setText(path)

    def _on_start(self) -> None:
        """Start the run that was described."""
        source = self.image.currentData()
        request = Request(
            source,
            Path(self.folder.text()).expanduser(),
            self._polygons(),
            self.model.currentData(),
            self.spacing.value() or None,
            self.start_over.isChecked(),
        )
        self.start.setEnabled(False)
        self.message.setText("starting…")
        self.bar.setRange(0, 0)
        self.bar.show()
        self._later(lambda: launch(request), self._on_launched)

    def _polygons(self) -> list[Polygon] | None:
        """Return the area that was chosen, None for all."""
        if self.area.currentData() == WHOLE:
            return None
        if self.area.currentData() == VIEW:
            return [viewed(self._viewer)]
        return drawn(self._viewer.layers[self.area.currentData()])

    def _on_launched(self, run: Run) -> None:
        """Follow the run."""
        self._run = run
        self.stop.setEnabled(True)
        self._follower = follow(self._viewer, run.store, begun=run.goes_on)

    def _show_progress(self, progress: RunProgress) -> None:
        """Show how far the run is."""
        self.message.setText(words_of(progress))
        # A bar counts in 32 bits; tokens may be more.
        self.bar.setRange(0, 1000 if progress.total else 0)
        self.bar.setValue(math.floor(1000 * progress.done / max(1, progress.total)))

    def _on_stop(self) -> None:
        """Ask the run to end."""
        if self._run is not None:
            self.stop.setEnabled(False)
            self.message.setText("stopping…")
            self.bar.setRange(0, 0)
            self._later(self._run.stop, lambda _: None)

    def _on_time(self) -> None:
        """Take up what other threads have done, and see to the process."""
        done = [pair for pair in self._waiting if pair[0].done()]
        self._waiting = [pair for pair in self._waiting if not pair[0].done()]
        for future, then in done:
            try:
                then(future.result())
            except GigavimError as error:
                self._show_idle(str(error))
                show_error(str(error))
        progress = self._follower and self._follower.progress
        if self._run is not None and not self._run.goes_on():
            self._on_ended(self._run)
        elif self._run is not None and self.stop.isEnabled() and progress:
            self._show_progress(progress)

    def _on_ended(self, run: Run) -> None:
        """Say how the run has ended; its layers are the follower's."""
        self._run = None
        ended = run.ended()
        if ended.error:
            self._show_idle(ended.error)
            show_error(ended.error)
        elif ended.summary is None:
            self._show_idle("stopped; the same run continues where it stopped")
        else:
            said = "was complete" if ended.summary["status"] == "skipped" else "is complete"
            self._show_idle(f"{run.store.name} {said}")
            show_info(f"{run.store.name} {said}")

    def _show_idle(self, message: str = "") -> None:
        """Show that nothing runs."""
        self.start.setEnabled(self.image.currentData() is not None)
        self.stop.setEnabled(False)
        self.bar.hide()
        self.message.setText(message)

    def _later(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Have something done that takes time, and go on with what it returns."""
        self._waiting.append((self._thread.submit(work), then))


def output_folder(image: str) -> Path:
    """Return where results go if nobody says: beside the image, or where a user's data are kept."""
    beside = Path(image).absolute().parent
    if os.access(beside, os.W_OK):
        return beside
    data = QStandardPaths.StandardLocation.GenericDataLocation
    return Path(QStandardPaths.writableLocation(data)) / "gigavim"


def _models() -> list[str]:
    """Return the names of models that can be run at once.

    Another process looks them up: importing PyTorch here would hold up the viewer for seconds.
    """
    command = [sys.executable, "-m", "gigavim", "models", "--json"]
    listed = subprocess.run(command, capture_output=True, check=False)
    if listed.returncode:
        raise GigavimError(f"models cannot be listed: {listed.stderr.decode(errors='replace')}")
    return [model["name"] for model in json.loads(listed.stdout) if "parameters" in model]


def _source(layer: Any) -> str:
    """Return the path of the image that a layer shows, empty for other layers."""
    ours = layer.metadata.get("gigavim") or {}
    return str(ours["source"]) if ours.get("kind") == "image" else ""


def _is_shapes(layer: Any) -> bool:
    return type(layer).__name__ == "Shapes"


def _refill(chooser: QComboBox, items: list[tuple[str, str]], wanted: str | None) -> None:
    """Offer other items, and leave chosen what is still there."""
    chooser.blockSignals(True)
    chooser.clear()
    for text, data in items:
        chooser.addItem(text, data)
    chooser.setCurrentIndex(max(0, chooser.findData(wanted)) if items else -1)
    chooser.blockSignals(False)


def _beside(*widgets: QWidget) -> QWidget:
    """Put widgets in a row that a form takes."""
    holder, row = QWidget(), _row(*widgets)
    row.setContentsMargins(0, 0, 0, 0)
    holder.setLayout(row)
    return holder


def _row(*widgets: QWidget) -> QHBoxLayout:
    row = QHBoxLayout()
    for widget in widgets:
        row.addWidget(widget)
    return row
