"""The classes that shapes may have: named, coloured, added and removed."""

from __future__ import annotations

from collections.abc import Mapping

from qtpy.QtCore import QSize, Qt, Signal  # type: ignore[attr-defined]
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import QColorDialog, QHeaderView, QTableWidget, QTableWidgetItem, QWidget

from gigavim.annotations import Colour
from gigavim.head import palette

HEADINGS = ("class", "shapes", "patches", "of image")
SWATCH = 16
"""Side of the square of a class's colour, in pixels of the screen."""
ROW, HEADER = 24, 22
"""Heights, in pixels of the screen."""
ROWS_SEEN = 3, 12
"""At least and at most; beyond them one scrolls."""


class ClassEditor(QTableWidget):
    """A table of classes, of which one is drawn with.

    A double click on a name renames it, one on the square before it changes its colour.

    Attributes
    ----------
    renamed
        Emitted with the old and the new name.
    changed
        Emitted when there are other classes or colours.
    refused
        Emitted with words for what cannot be done.
    """

    renamed = Signal(str, str)
    changed = Signal()
    refused = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(0, len(HEADINGS), parent)
        self._colours: list[Colour] = []
        self._names: list[str] = []
        self.setSelectionBehavior(QTableWidget.SelectionBehavior.SelectRows)
        self.setSelectionMode(QTableWidget.SelectionMode.SingleSelection)
        self.setEditTriggers(QTableWidget.EditTrigger.EditKeyPressed)
        self.setIconSize(QSize(SWATCH, SWATCH))
        self.setShowGrid(False)
        self.setHorizontalHeaderLabels(HEADINGS)
        self.verticalHeader().hide()
        self.verticalHeader().setMinimumSectionSize(ROW)
        self.verticalHeader().setDefaultSectionSize(ROW)
        self.horizontalHeader().setFixedHeight(HEADER)
        self.horizontalHeader().setHighlightSections(False)
        self.horizontalHeader().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for column in range(1, len(HEADINGS)):
            self.horizontalHeader().setSectionResizeMode(
                column, QHeaderView.ResizeMode.ResizeToContents
            )
        self.itemChanged.connect(self._on_edited)

    @property
    def colours(self) -> dict[str, Colour]:
        """The colour of each class, in their order."""
        return dict(zip(self._names, self._colours, strict=True))

    @property
    def current(self) -> str:
        """The class that is drawn with."""
        return self._names[max(0, self.currentRow())]

    def add(self, name: str | None = None, colour: Colour | None = None) -> None:
        """Add a class, by default with a name and a colour that no other one has."""
        if name is None:
            numbered = (f"class {number}" for number in range(1, len(self._names) + 2))
            name = next(each for each in numbered if each not in self._names)
        if colour is None:
            free = [(int(r), int(g), int(b)) for r, g, b in palette(len(self._names) + 1)]
            colour = next((each for each in free if each not in self._colours), free[-1])
        self._names.append(name)
        self._colours.append(colour)
        row = self.rowCount()
        self.blockSignals(True)
        self.insertRow(row)
        item = QTableWidgetItem(_swatch(colour), name)
        item.setToolTip("Double click: rename; on the square: another colour")
        self.setItem(row, 0, item)
        for column in range(1, len(HEADINGS)):
            amount = QTableWidgetItem()
            amount.setFlags(amount.flags() & ~Qt.ItemFlag.ItemIsEditable)
            amount.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            self.setItem(row, column, amount)
        self.blockSignals(False)
        self.setCurrentCell(row, 0)
        self._fit_height()
        self.changed.emit()

    def remove_current(self, shapes: Mapping[str, int]) -> None:
        """Remove the class that is drawn with, unless it is the last or shapes have it."""
        name = self.current
        if shapes.get(name):
            self.refused.emit(
                f"{name!r} has {shapes[name]} shapes; give them another class, or delete them first"
            )
        elif len(self._names) == 1:
            self.refused.emit(f"{name!r} is the last class; rename it instead")
        else:
            row = max(0, self.currentRow())
            self.blockSignals(True)
            del self._names[row], self._colours[row]
            self.removeRow(row)
            self.blockSignals(False)
            self._fit_height()
            self.changed.emit()

    def recolour(self, name: str, colour: Colour) -> None:
        """Give a class another colour."""
        row = self._names.index(name)
        self._colours[row] = colour
        self.blockSignals(True)
        self._cell(row, 0).setIcon(_swatch(colour))
        self.blockSignals(False)
        self.changed.emit()

    def set_amounts(self, amounts: Mapping[str, tuple[str, ...]]) -> None:
        """Write what there is of each class, nothing where there is nothing."""
        self.blockSignals(True)
        for row, name in enumerate(self._names):
            words = amounts.get(name, ("",) * (len(HEADINGS) - 1))
            for column, text in enumerate(words, start=1):
                self._cell(row, column).setText(text)
        self.blockSignals(False)

    def mouseDoubleClickEvent(self, event: object) -> None:  # noqa: N802
        """Rename a class, or change its colour."""
        place = event.position().toPoint()  # type: ignore[attr-defined]
        item = self.itemAt(place)
        if item is None or item.column() != 0:
            return
        if place.x() - self.visualItemRect(item).x() > SWATCH + 4:
            self.editItem(item)
            return
        name = self._names[item.row()]
        colour = QColorDialog.getColor(QColor(*self.colours[name]), self, f"Colour of {name}")
        if colour.isValid():
            self.recolour(name, (colour.red(), colour.green(), colour.blue()))

    def _fit_height(self) -> None:
        """Take no more room than the classes need."""
        rows = min(max(ROWS_SEEN[0], self.rowCount()), ROWS_SEEN[1])
        self.setFixedHeight(HEADER + rows * ROW + 2 * self.frameWidth())

    def _cell(self, row: int, column: int) -> QTableWidgetItem:
        item = self.item(row, column)
        assert item is not None  # all are there from the start
        return item

    def _on_edited(self, item: QTableWidgetItem) -> None:
        """Take a new name, if it is one."""
        old, new = self._names[item.row()], item.text().strip()
        if new == old:
            return
        if not new or new in self._names:
            self.blockSignals(True)
            item.setText(old)
            self.blockSignals(False)
            self.refused.emit(f"there is a class {new!r} already" if new else "a class has a name")
            return
        self._names[item.row()] = new
        self.renamed.emit(old, new)
        self.changed.emit()


def _swatch(colour: Colour) -> QIcon:
    """Return a square of a colour."""
    square = QPixmap(SWATCH, SWATCH)
    square.fill(QColor(*colour))
    return QIcon(square)
