"""Annotations and probes to and from files, of the dock "Annotate and teach"."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from napari.utils.notifications import show_info, show_warning
from qtpy.QtCore import Signal  # type: ignore[attr-defined]
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QPushButton, QWidget

from gigavim.annotations import Annotation, read_annotations, write_annotations
from gigavim.checkpoint import Model
from gigavim.errors import ModelError
from gigavim.plugins.napari.background import in_background
from gigavim.plugins.napari.notify import notify
from gigavim.plugins.napari.probe_map import Taught, stem_of
from gigavim.plugins.napari.results import Results
from gigavim.probe_model import model_of, options_of, save_probe

GEOJSON = "GeoJSON (*.geojson *.json)"
MODELS = "Models (*.safetensors *.pth)"

Annotations = Callable[[], list[Annotation]]


class TeachFiles(QWidget):
    """Buttons that load and save.

    Attributes
    ----------
    loaded
        Emitted with the results, the name of the file and the annotations in it.
    """

    loaded = Signal(object, str, object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._results: Results | None = None
        self._annotations: Annotations | None = None
        self._taught: Taught | None = None
        self.load, self.save, self.save_model = (
            QPushButton("Load GeoJSON…"), QPushButton("Save GeoJSON…"), QPushButton("Save model…"),
        )  # fmt: skip
        self.save.setToolTip("Annotations that QuPath opens; of a scene, that QGIS does")
        self.save_model.setToolTip("A model with this probe, for gigavim run --model")
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        for button in (self.load, self.save, self.save_model):
            row.addWidget(button)
        self.load.clicked.connect(self._on_load)
        self.save.clicked.connect(self._on_save)
        self.save_model.clicked.connect(self._on_save_model)

    def offer(
        self, results: Results | None, annotations: Annotations | None, taught: Taught | None
    ) -> None:
        """Work with these from now on, as far as they are there."""
        self._results, self._annotations, self._taught = results, annotations, taught
        self.load.setEnabled(results is not None)
        self.save.setEnabled(annotations is not None)
        self.save_model.setEnabled(taught is not None)

    def _on_load(self) -> None:
        results = self._results
        path, _ = QFileDialog.getOpenFileName(self, "Load annotations", "", GEOJSON)
        if not path or results is None:
            return

        def loaded(read: tuple[list[Annotation], list[str]]) -> None:
            annotations, left_out = read
            for words in left_out:
                show_warning(words)
            self.loaded.emit(results, Path(path).stem, annotations)

        in_background(self, lambda: read_annotations(Path(path), results.open_image()), loaded)

    def _on_save(self) -> None:
        results, annotations = self._results, self._annotations
        if results is None or annotations is None:
            return
        drawn = annotations()
        path = self._ask_path("Save annotations", f"{stem_of(results)}.geojson", GEOJSON)
        if path:
            in_background(
                self,
                lambda: write_annotations(Path(path), drawn, results.open_image()),
                lambda _: show_info(f"{path} is written"),
            )

    def _on_save_model(self) -> None:
        results, taught = self._results, self._taught
        if results is None or taught is None:
            return
        path = self._ask_path("Save model", f"{stem_of(results)}.probe.safetensors", MODELS)
        if path:
            self._find_model(Path(path), results, taught, None)

    def _find_model(self, path: Path, results: Results, taught: Taught, given: str | None) -> None:
        """Find the model of the features, or ask where it is, and save the probe in it."""

        def not_found(error: Exception) -> None:
            title, chosen = "Where is the model that made the features?", ""
            if given is None and isinstance(error, ModelError):
                chosen, _ = QFileDialog.getOpenFileName(self, title, "", MODELS)
            if chosen:
                self._find_model(path, results, taught, chosen)
            else:
                notify(error)

        in_background(
            self,
            lambda: model_of(results.store, given),
            partial(self._save_model, path, results, taught),
            not_found,
        )

    def _save_model(self, path: Path, results: Results, taught: Taught, model: Model) -> None:
        options = options_of(results.store)
        in_background(
            self,
            lambda: save_probe(path, taught.probe, results.store, model),
            lambda _: show_info(
                f"{path} is written; to run it: gigavim run IMAGE --model {path} {options}".strip()
            ),
        )

    def _ask_path(self, title: str, name: str, kinds: str) -> str:
        path, _ = QFileDialog.getSaveFileName(self, title, name, kinds)
        return str(path)
