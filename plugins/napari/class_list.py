"""A list of classes: colour, name, how large, and a box that shows or hides each."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qtpy.QtCore import QSize, Qt, Signal  # type: ignore[attr-defined]
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import QHeaderView, QTableWidget, QTableWidgetItem, QWidget

from gigavim.ngff import Colour

MOST_ROWS = 12
"""Seen at once; beyond them one scrolls."""


ROW_HEIGHT, HEADER_HEIGHT = 24, 22
"""In pixels of the screen; napari's style would make them a third higher."""


class ClassList(QTableWidget):
    """Classes 1, 2, ... of one class map.

    Attributes
    ----------
    toggled
        Emitted with a class and whether it is to be shown, when somebody ticks its box.
    """

    toggled = Signal(int, bool)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(0, 3, parent)
        self.setSelectionBehavior(QTableWidget.SelectionBehavior.SelectRows)
        self.setSelectionMode(QTableWidget.SelectionMode.SingleSelection)
        self.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setShowGrid(False)
        self.setIconSize(QSize(14, 14))
        self.verticalHeader().hide()
        self.verticalHeader().setMinimumSectionSize(ROW_HEIGHT)
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        header = self.horizontalHeader()
        header.setHighlightSections(False)
        header.setFixedHeight(HEADER_HEIGHT)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for column in (1, 2):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
        self.itemChanged.connect(self._on_changed)

    def set_classes(
        self,
        names: Sequence[str],
        colours: Sequence[Colour],
        hidden: Collection[int],
    ) -> None:
        """List other classes, with the boxes of those that are hidden not ticked."""
        self.blockSignals(True)
        self.clearSelection()
        self.setCurrentCell(-1, -1)
        self.setHorizontalHeaderLabels(["class", "", ""])
        self.setRowCount(len(names))
        for row, (name, colour) in enumerate(zip(names, colours, strict=True)):
            item = QTableWidgetItem(_swatch(colour), name)
            item.setToolTip(name)
            flags = Qt.ItemFlag
            item.setFlags(flags.ItemIsEnabled | flags.ItemIsSelectable | flags.ItemIsUserCheckable)
            item.setCheckState(
                Qt.CheckState.Unchecked if row + 1 in hidden else Qt.CheckState.Checked
            )
            self.setItem(row, 0, item)
            for column in (1, 2):
                amount = QTableWidgetItem()
                amount.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                self.setItem(row, column, amount)
        self.blockSignals(False)
        rows = min(len(names), MOST_ROWS)
        self.setFixedHeight(HEADER_HEIGHT + rows * ROW_HEIGHT + 2 * self.frameWidth() + 2)

    def set_amounts(self, columns: tuple[str, str], rows: Sequence[tuple[str, str]]) -> None:
        """Write what there is to say of each class."""
        self.setHorizontalHeaderLabels(["class", *columns])
        for row, words in enumerate(rows):
            for column, text in enumerate(words, start=1):
                item = self.item(row, column)
                if item is not None:
                    item.setText(text)

    @property
    def chosen(self) -> int | None:
        """The class whose line is selected."""
        row = self.currentRow()
        return row + 1 if row >= 0 else None

    def _on_changed(self, item: QTableWidgetItem) -> None:
        if item.column() == 0:
            self.toggled.emit(item.row() + 1, item.checkState() == Qt.CheckState.Checked)


def _swatch(colour: Colour) -> QIcon:
    """Return a square of a colour."""
    square = QPixmap(14, 14)
    square.fill(QColor(*colour))
    icon = QIcon(square)
    # The style would tint it on a selected line.
    icon.addPixmap(square, QIcon.Mode.Selected)
    return icon
