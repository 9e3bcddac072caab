"""Pans a slide in a window as a hand does; prints what that took, as JSON."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
from qtpy.QtWidgets import QApplication

from gigavim.plugins.napari.lazy import Pyramid
from gigavim.plugins.napari.window import is_loading, open_viewer

TOURS = 3
ZOOMS = (1, 8, 50, 200)
"""From the whole slide to its pixels."""
STEPS = 12
STEP = 90
"""Pixels of the canvas."""


class Ears:
    """Notes how long the thread of the window was busy at once, and who has read tiles."""

    def __init__(self) -> None:
        self.readers: set[int] = set()
        self.tiles = self.peak_bytes = 0
        load = Pyramid.load

        def noted(pyramid: Pyramid, key: Any) -> Any:
            self.readers.add(threading.get_ident())
            self.tiles += 1
            return load(pyramid, key)

        Pyramid.load = noted  # type: ignore[method-assign]

    def turn(self) -> float:
        """Let the window do all that it has to; return the milliseconds that its thread ran.

        Of the processor, not of the clock: whatever else the machine does is not its fault.
        """
        start = time.thread_time()
        QApplication.processEvents()
        took = time.thread_time() - start
        self.peak_bytes = max(self.peak_bytes, psutil.Process().memory_info().rss)
        time.sleep(0.01)
        return 1000 * took


def tour(viewer: Any, ears: Ears, whole: float) -> Iterator[float]:
    """Yield how long each turn of the window took, around the slide at each zoom."""
    for zoom in ZOOMS:
        viewer.reset_view()
        viewer.camera.zoom = whole * zoom
        _, *middle = viewer.camera.center
        step = STEP / viewer.camera.zoom
        for number in range(STEPS):
            angle = 2 * math.pi * number / STEPS
            y, x = middle[0] + step * math.sin(angle), middle[1] + step * number
            viewer.camera.center = (0, y, x)
            yield ears.turn()
        # What is read is shown as it comes.
        while is_loading(viewer):
            yield ears.turn()


def main(slide: str) -> None:
    """Pan; the longest block is that of the quietest tour."""
    ears = Ears()
    viewer = open_viewer([slide])
    viewer.window.resize(1400, 900)
    deadline = time.monotonic() + 120
    while is_loading(viewer) and time.monotonic() < deadline:
        ears.turn()
    whole = viewer.camera.zoom
    blocks = [max(tour(viewer, ears, whole)) for _ in range(TOURS)]
    told = {
        "block_ms": min(blocks),
        "blocks_ms": blocks,
        "peak_bytes": ears.peak_bytes,
        "tiles": ears.tiles,
        "window_has_read": threading.main_thread().ident in ears.readers,
    }
    print(json.dumps(told))
    viewer.close()


if __name__ == "__main__":
    main(sys.argv[1])
