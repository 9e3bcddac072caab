"""A box that says what was run, how far it is, and where the image could not be read."""

from __future__ import annotations

import re

from qtpy.QtCore import Qt, Signal  # type: ignore[attr-defined]
from qtpy.QtWidgets import (
    QFormLayout,
    QGroupBox,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QVBoxLayout,
)

from gigavim.plugins.napari.about_run import about, read_errors
from gigavim.plugins.napari.results import Results


def breakable(words: str) -> str:
    """Let long names and paths be broken, which a label would otherwise cut off.

    >>> breakable("a_long/name") == "a_\u200blong/\u200bname"
    True
    """
    return re.sub(r"(?<=[_/\\.-])(?=\w)", "\u200b", words)


class RunBox(QGroupBox):
    """Describes one run.

    Attributes
    ----------
    visited
        Emitted with the region of an error that was double-clicked.
    """

    visited = Signal(object)

    def __init__(self) -> None:
        super().__init__("Run")
        self.words = QFormLayout()
        self.words.setRowWrapPolicy(QFormLayout.RowWrapPolicy.DontWrapRows)
        self.errors = QListWidget()
        self.errors.setFixedHeight(84)
        self.errors.setWordWrap(True)
        self.errors.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.errors.setToolTip("What could not be read; a double-click goes there")
        self.errors.itemDoubleClicked.connect(self._on_error)
        layout = QVBoxLayout(self)
        layout.addLayout(self.words)
        layout.addWidget(self.errors)
        self.set_results(None)

    def set_results(self, results: Results | None) -> None:
        """Describe another run, or the same once more."""
        self.setVisible(results is not None)
        while self.words.rowCount():
            self.words.removeRow(0)
        self.errors.clear()
        if results is None:
            return
        for name, words in about(results).items():
            label = QLabel(breakable(words))
            label.setWordWrap(True)
            label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
            self.words.addRow(name, label)
        for region in read_errors(results):
            item = QListWidgetItem(region.words)
            item.setToolTip(region.words)
            item.setData(Qt.ItemDataRole.UserRole, region)
            self.errors.addItem(item)
        self.errors.setVisible(self.errors.count() > 0)

    def _on_error(self, item: QListWidgetItem) -> None:
        self.visited.emit(item.data(Qt.ItemDataRole.UserRole))
