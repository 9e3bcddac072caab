"""A slider from 0 to 1 in hundredths, by mouse and keyboard, with its value beside it."""

from __future__ import annotations

from qtpy.QtCore import Qt, Signal  # type: ignore[attr-defined]
from qtpy.QtWidgets import QHBoxLayout, QLabel, QSlider, QWidget

STEPS = 100


class UnitSlider(QWidget):
    """A number from 0 to 1.

    Attributes
    ----------
    changed
        Emitted with the number when somebody moves the slider, and not by `set_value`.
    """

    changed = Signal(float)

    def __init__(self, tooltip: str) -> None:
        super().__init__()
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setRange(0, STEPS)
        self.slider.setPageStep(STEPS // 10)
        self.slider.valueChanged.connect(self._on_moved)
        self._number = QLabel()
        self._number.setFixedWidth(self._number.fontMetrics().horizontalAdvance("0.000"))
        self.setToolTip(tooltip)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.slider)
        layout.addWidget(self._number)
        self.set_value(0.0)

    @property
    def value(self) -> float:
        """Where the slider is."""
        return self.slider.value() / STEPS

    def set_value(self, value: float) -> None:
        """Move the slider without telling anybody."""
        self.slider.blockSignals(True)
        self.slider.setValue(round(value * STEPS))
        self.slider.blockSignals(False)
        self._write()

    def _on_moved(self) -> None:
        self._write()
        self.changed.emit(self.value)

    def _write(self) -> None:
        self._number.setText(f"{self.value:.2f}")
