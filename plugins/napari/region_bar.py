"""Two buttons that lead through the regions of a class, one after the other."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import Signal  # type: ignore[attr-defined]
from qtpy.QtWidgets import QGridLayout, QLabel, QPushButton, QWidget

from gigavim.plugins.napari.background import in_background
from gigavim.plugins.napari.regions import Region


class RegionBar(QWidget):
    """Asks for regions when they are wanted, and steps through them.

    Attributes
    ----------
    visited
        Emitted with the region to look at.
    """

    visited = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.previous, self.next = QPushButton("◀ Previous"), QPushButton("Next ▶")
        self.words = QLabel()
        self.words.setWordWrap(True)
        # Two lines, so that nothing below moves when one goes on.
        self.words.setMinimumHeight(2 * self.words.fontMetrics().lineSpacing() + 6)
        self.previous.clicked.connect(lambda: self._step(-1))
        self.next.clicked.connect(lambda: self._step(1))
        layout = QGridLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.previous, 0, 0)
        layout.addWidget(self.next, 0, 1)
        layout.addWidget(self.words, 1, 0, 1, 2)
        self.set_finder(None)

    def set_finder(
        self, find: Callable[[], list[Region]] | None, name: str = "", order: str = ""
    ) -> None:
        """Forget the regions there were; ``find`` gives others, off this thread.

        Parameters
        ----------
        name
            Of their class.
        order
            In which they come, for people.
        """
        self._find, self._name = find, name
        self._regions: list[Region] | None = None
        self._position = -1
        for button in (self.previous, self.next):
            button.setEnabled(find is not None)
            button.setToolTip(f"Goes through the regions of {name}, {order}" if name else "")
        self.words.setText(f"Regions of {name}, {order}" if name else "Choose a class")

    def _step(self, by: int) -> None:
        """Go on, and from the last to the first."""
        find = self._find
        if find is None:
            return
        if self._regions is None:
            self.words.setText(f"Looking for regions of {self._name} …")
            in_background(self, find, lambda regions: self._found(find, regions, by))
            return
        if not self._regions:
            return
        self._position = (self._position + by) % len(self._regions)
        region = self._regions[self._position]
        place = f"{self._name}: region {self._position + 1:,} of {len(self._regions):,}"
        self.words.setText(f"{place}, {region.words}")
        self.visited.emit(region)

    def _found(self, find: Callable[[], list[Region]], regions: list[Region], by: int) -> None:
        """Go to the first, unless something else is asked for by now."""
        if find is not self._find:
            return
        self._regions = regions
        self._position = -1 if by > 0 else 0
        if not regions:
            self.words.setText(f"There is no {self._name} to go to")
        self._step(by)
