"""What Qt keeps time for ends in the thread of the window, or the process ends with it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from napari.layers import Labels

from gigavim.plugins.napari.ask import AskPanel
from gigavim.plugins.napari.lazy import Pyramid
from gigavim.plugins.napari.panel import Panel
from gigavim.plugins.napari.results_panel import ResultsPanel
from gigavim.plugins.napari.run_here import RunPanel
from gigavim.plugins.napari.teach import TeachPanel
from gigavim.plugins.napari.window import EVERY_MS, keep_fresh


def in_another_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_an_image_may_be_collected_by_any_thread(qtbot: Any, qtlog: Any) -> None:
    held = [Pyramid(lambda *_: (np.zeros((64, 64), np.int32), ()), (64, 64), (64,), np.int32)]
    keep_fresh(Labels(np.zeros((2, 2), int)), held[0])
    held.clear()
    in_another_thread(gc.collect)
    qtbot.wait(3 * EVERY_MS)
    assert [record.message for record in qtlog.records] == []


@pytest.mark.parametrize("kind", [AskPanel, ResultsPanel, RunPanel, TeachPanel])
def test_a_dock_may_be_closed_and_opened_again(
    viewer: Any, qtbot: Any, qtlog: Any, kind: type[Panel]
) -> None:
    held = [kind(viewer)]
    viewer.window.add_dock_widget(held[0], name="dock")
    window = held[0].window()
    viewer.window.remove_dock_widget(held[0])
    qtbot.waitUntil(lambda: held[0].parent() is window)
    assert not held[0].isVisible()
    held.clear()
    in_another_thread(gc.collect)
    opened = kind(viewer)
    viewer.window.add_dock_widget(opened, name="dock")
    viewer.add_labels(np.zeros((4, 4), int))
    qtbot.wait(3 * EVERY_MS)
    assert opened.isVisible()
    assert [record.message for record in qtlog.records] == []
