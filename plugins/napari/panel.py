"""What the docks of GigaVim have in common."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QEvent, QTimer
from qtpy.QtWidgets import QWidget


class Panel(QWidget):
    """A widget that napari docks, and that lives as long as the window.

    napari takes it out of a dock that is closed and forgets it. Python would collect it some time,
    in some thread, and Qt ends the process if that is not the thread of its timers.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        # Widgets get the viewer in a wrapper, and layers from that in wrappers of their own.
        self._viewer = getattr(napari_viewer, "__wrapped__", napari_viewer)
        self._window = self._viewer.window._qt_window

    def event(self, event: QEvent) -> bool:
        """Notice that the dock is closed."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            QTimer.singleShot(0, lambda: self._stay())
        return bool(super().event(event))

    def _stay(self) -> None:
        """Become the window's, unseen."""
        if self.parent() is None:
            self.setParent(self._window)
