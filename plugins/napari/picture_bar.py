"""Two buttons that make pictures of what is shown."""

from __future__ import annotations

from functools import partial
from typing import Any

from napari.utils.notifications import show_info
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QPushButton, QWidget

from gigavim.errors import GigavimError
from gigavim.plugins.napari.background import in_background
from gigavim.plugins.napari.notify import notify
from gigavim.plugins.napari.picture import save_overlay, save_view
from gigavim.plugins.napari.shown import Shown, hidden_classes
from gigavim.plugins.napari.window import load_view


class PictureBar(QWidget):
    """Saves the view, or the whole image beside its class map."""

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._shown: Shown | None = None
        self.view, self.overlay = QPushButton("Save view…"), QPushButton("Save overlay…")
        self.view.setToolTip("A PNG of what is seen, with legend and scale bar")
        self.overlay.setToolTip("A PNG of the whole image beside the class map as it is now")
        self.view.clicked.connect(self._on_view)
        self.overlay.clicked.connect(self._on_overlay)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.view)
        layout.addWidget(self.overlay)
        self.set_shown(None)

    def set_shown(self, shown: Shown | None) -> None:
        """Make pictures of another class map."""
        self._shown = shown
        for button in (self.view, self.overlay):
            button.setEnabled(shown is not None)

    def _on_view(self) -> None:
        shown = self._shown
        path = self._ask_path("view")
        if shown is None or not path:
            return
        load_view(self._viewer)
        try:
            save_view(self._viewer, path, shown.results.unit, shown.legend(), shown.title())
        except GigavimError as error:
            notify(error)
        else:
            show_info(f"{path} is written")

    def _on_overlay(self) -> None:
        shown = self._shown
        path = self._ask_path("overlay")
        if shown is None or not path:
            return
        # What is shown now, whatever will be by the time that the image has been read.
        write = partial(
            save_overlay, shown.results, shown.map, shown.threshold, hidden_classes(shown.layer),
            path, shown.title(),
        )  # fmt: skip
        in_background(self, write, lambda _: show_info(f"{path} is written"))

    def _ask_path(self, what: str) -> str:
        """Ask where to write a picture; nothing where the person thinks better of it."""
        if self._shown is None:
            return ""
        stem = self._shown.results.store.path.name.removesuffix(".zarr").removesuffix(".gigavim")
        name = f"{stem}.{self._shown.head}.{what}.png"
        path, _ = QFileDialog.getSaveFileName(self, "Save a picture", name, "PNG (*.png)")
        return str(path)
