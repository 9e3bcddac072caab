"""A table of the classes of a patch, with a bar for each probability."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import QModelIndex, QPersistentModelIndex, Qt
from qtpy.QtGui import QColor, QPainter
from qtpy.QtWidgets import (
    QHeaderView,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableWidget,
    QTableWidgetItem,
)

from gigavim.plugins.napari.patch import ClassOfPatch

ROW_HEIGHT = 22
"""In pixels."""
MOST_ROWS = 8
"""Seen without scrolling."""


class ProbabilityBars(QTableWidget):
    """Names classes with their colours, and how probable each is where a head says so."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        self.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
        self.setSelectionMode(QTableWidget.SelectionMode.NoSelection)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setShowGrid(False)
        self.horizontalHeader().hide()
        self.verticalHeader().hide()
        self.verticalHeader().setMinimumSectionSize(ROW_HEIGHT)
        self.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        header = self.horizontalHeader()
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(1, QHeaderView.ResizeMode.Stretch)
        self._bars = _Bars(self)
        self.setItemDelegateForColumn(1, self._bars)

    def set_classes(self, classes: Sequence[ClassOfPatch]) -> None:
        """Show the classes of another patch."""
        self.setRowCount(len(classes))
        for row, shown in enumerate(classes):
            name = QTableWidgetItem(shown.name)
            name.setData(Qt.ItemDataRole.DecorationRole, QColor(*shown.colour))
            self.setItem(row, 0, name)
            words = shown.head if shown.probability is None else f"{shown.probability:.1%}"
            cell = QTableWidgetItem(words)
            cell.setData(Qt.ItemDataRole.UserRole, shown)
            self.setItem(row, 1, cell)
        self.setFixedHeight(ROW_HEIGHT * min(MOST_ROWS, len(classes)) + 2 * self.frameWidth())
        self.setVisible(len(classes) > 0)


class _Bars(QStyledItemDelegate):
    """Paints a probability as a bar behind its number."""

    def paint(
        self,
        painter: QPainter,
        option: QStyleOptionViewItem,
        index: QModelIndex | QPersistentModelIndex,
    ) -> None:
        shown: ClassOfPatch = index.data(Qt.ItemDataRole.UserRole)
        if shown.probability:
            bar = option.rect.adjusted(0, 4, 0, -4)
            bar.setWidth(max(1, round(bar.width() * shown.probability)))
            painter.fillRect(bar, QColor(*shown.colour, 160))
        super().paint(painter, option, index)
