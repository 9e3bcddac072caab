"""Clicks on the image are answered, by what a run stored of the patch that was clicked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from qtpy.QtCore import QPoint, Qt

from gigavim.plugins.napari.ask import AskPanel
from gigavim.plugins.napari.layers import add_results
from gigavim.plugins.napari.patch import compare, patch_at, why_no_patch
from gigavim.plugins.napari.results import Results, open_results
from gigavim.similarity import read_features
from gigavim.store.tables import write_table
from images import write_scene, write_slide
from stores import write_store

WAIT_MS = 120_000
PATCH, MPP = 16, 0.5
UNREADABLE = (30, 50)
GREEN = (57, 255, 20)


def labels_of_slide() -> NDArray[np.uint8]:
    """Return three classes side by side, with background around."""
    labels = np.zeros((64, 96), np.uint8)
    for label in (1, 2, 3):
        labels[8:56, 24 * label - 12 : 24 * label + 12] = label
    return labels


def add_tokens(store: Path, labels: NDArray[np.uint8]) -> None:
    """Write features that turn by the same angle from each column to the next, and by less down."""
    group = zarr.open_group(store, mode="r+")
    index = np.argwhere(labels)
    angle = 0.02 * index[:, 1] + 0.0001 * index[:, 0]
    features = np.stack([np.cos(angle), np.sin(angle), 0 * angle, 0 * angle], 1)
    valid = (index != UNREADABLE).any(1)
    given = labels[tuple(index.T)] - 1
    probs = np.full((len(index), 3), 0.1)
    probs[np.arange(len(index)), (given + 1) % 3] = 0.2
    probs[np.arange(len(index)), given] = 0.7
    probs[~valid] = np.nan
    for name, values, dtype in (
        ("tokens/features", features, np.float16),
        ("tokens/probs", probs, np.float16),
        ("tokens/valid", valid, np.uint8),
    ):
        write_table(group, name, [values], values.shape, dtype)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "slide.svs", mpp=MPP)


@pytest.fixture
def store(tmp_path: Path, slide: Path) -> Path:
    """Return the store of a run with classes, features, and one patch that cannot be read."""
    labels = labels_of_slide()
    path = write_store(tmp_path / "slide.gigavim.zarr", slide, labels, patch=PATCH)
    add_tokens(path, labels)
    return path


@pytest.fixture
def results(store: Path) -> Results:
    return open_results(store)


def middle_of(row: int, column: int) -> tuple[float, float]:
    """Return the middle of a patch of the slide, in µm."""
    return (row + 0.5) * PATCH * MPP, (column + 0.5) * PATCH * MPP


def test_a_patch_is_the_one_that_lies_there_with_its_probabilities(results: Results) -> None:
    for row, column, first, second in ((8, 12, "red", "green"), (55, 83, "blue", "red")):
        y, x = middle_of(row, column)
        for dy, dx in ((0, 0), (-3.9, -3.9), (3.9, 3.9)):
            patch = patch_at(results, y + dy, x + dx)
            assert patch is not None
            assert (patch.row, patch.column) == (row, column)
            assert (patch.y, patch.x) == (row * PATCH, column * PATCH)
            assert results.grid_index[patch.token].tolist() == [row, column]
            assert [found.name for found in patch.classes[:2]] == [first, second]
            chances = [found.probability for found in patch.classes]
            assert chances == pytest.approx([0.7, 0.2, 0.1], abs=1e-3)


def test_a_head_without_probabilities_answers_with_its_class(store: Path) -> None:
    del zarr.open_group(store, mode="r+")["tokens/probs"]
    patch = patch_at(open_results(store), *middle_of(20, 40))
    assert patch is not None
    assert [(found.name, found.probability) for found in patch.classes] == [("green", None)]


def test_beside_the_patches_there_is_none_and_it_is_said_why(results: Results) -> None:
    for place, why in (
        ((1.0, 1.0), "background"),
        ((-1.0, 5.0), "outside"),
        ((5.0, 1e4), "outside"),
    ):
        assert patch_at(results, *place) is None
        assert why in why_no_patch(results, *place)


def test_the_heat_map_has_each_similarity_in_its_cell(results: Results) -> None:
    features = np.asarray(results.store.array("tokens/features")[...], np.float64)
    table = read_features(features, results.store.values("tokens/valid") > 0)
    asked = int(results.rows[30, 40])
    found = compare(results, table, asked, 20)

    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for row, column in ((30, 40), (8, 12), (55, 83), (31, 50)):
        expected = unit[results.rows[row, column]] @ unit[asked]
        assert found.heat[row, column] == pytest.approx(expected, abs=1e-6)
    without = labels_of_slide() == 0
    without[UNREADABLE] = True
    np.testing.assert_array_equal(np.isnan(found.heat), without)
    assert len(found.similar.tokens) == 21
    assert found.similar.tokens[0] == asked
    assert found.limits[0] < found.limits[1] == 1


class Window:
    """The dock in a viewer's window, and a mouse."""

    def __init__(self, viewer: Any, qtbot: Any) -> None:
        self.viewer, self.qtbot, self.panel = viewer, qtbot, AskPanel(viewer)
        viewer.window.resize(1100, 800)
        viewer.window.add_dock_widget(self.panel, name="Ask a patch", area="right")
        qtbot.waitUntil(lambda: viewer.window._qt_viewer.canvas.native.width() > 300)
        viewer.reset_view()

    @property
    def screen(self) -> Any:
        return self.viewer.window._qt_viewer.canvas.native

    def pixel(self, y: float, x: float) -> tuple[float, float]:
        """Return where a place is on the screen, down and to the right."""
        camera = self.viewer.camera
        return (
            (y - camera.center[-2]) * camera.zoom + self.screen.height() / 2,
            (x - camera.center[-1]) * camera.zoom + self.screen.width() / 2,
        )

    def click(self, y: float, x: float) -> None:
        self.drag((y, x), (0, 0))

    def drag(self, place: tuple[float, float], by: tuple[int, int]) -> None:
        """Press the button, move by pixels down and to the right, and let go."""
        down, right = (round(value) for value in self.pixel(*place))
        start, end = QPoint(right, down), QPoint(right + by[1], down + by[0])
        left = Qt.MouseButton.LeftButton
        self.qtbot.mousePress(self.screen, left, pos=start)
        if by != (0, 0):
            self.qtbot.mouseMove(self.screen, end)
            self.qtbot.wait(50)
        self.qtbot.mouseRelease(self.screen, left, pos=end)

    def answered(self, count: int = 50) -> None:
        self.qtbot.waitUntil(
            lambda: self.panel.similar.topLevelItemCount() == count, timeout=WAIT_MS
        )

    def says(self, words: str) -> None:
        self.qtbot.waitUntil(lambda: words in self.panel.message.text(), timeout=WAIT_MS)

    def layer(self, kind: str) -> Any:
        (layer,) = (
            layer
            for layer in self.viewer.layers
            if (layer.metadata.get("gigavim") or {}).get("kind") == kind
        )
        return layer

    def kinds(self) -> set[str]:
        return {layer.metadata["gigavim"]["kind"] for layer in self.viewer.layers}


@pytest.fixture
def window(viewer: Any, qtbot: Any) -> Window:
    return Window(viewer, qtbot)


def test_a_click_outlines_its_patch_to_the_pixel_and_shows_what_it_is_like(
    window: Window, results: Results
) -> None:
    assert "Open the results" in window.panel.message.text()
    add_results(window.viewer, results)
    assert window.panel.message.text() == "Click on the image."
    selected = window.viewer.layers.selection.active
    y, x = middle_of(20, 40)
    window.click(y + 3, x - 3)
    window.answered()

    panel = window.panel
    token = int(results.rows[20, 40])
    assert panel.token.text().startswith(f"{token:,} of")
    assert panel.cell.text() == "row 20, column 40"
    assert panel.corner.text() == "x 640, y 320"
    shown = [panel.classes.item(row, 0).text() for row in range(3)]
    assert shown == ["green", "blue", "red"]
    assert panel.classes.item(0, 1).text() == "70.0%"
    # In the same column, the angle changes least.
    assert {item(panel, n, 2) for n in range(40)} == {"40"}
    points = window.layer("similar")
    assert points.features["token"].tolist()[0] == token
    np.testing.assert_allclose(points.data[0], (y, x))
    assert window.viewer.layers.selection.active is selected
    heat, classes = window.layer("similarity"), window.layer("classes")
    for corner in ((-0.5, -0.5), (63.5, 95.5)):
        np.testing.assert_allclose(heat.data_to_world(corner), classes.data_to_world(corner))
    assert heat.data[20, 40] == 1

    window.viewer.camera.center, window.viewer.camera.zoom = (0, y, x), 20
    heat.visible = False
    picture = window.viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)
    down, right = np.nonzero(np.abs(picture - GREEN).max(2) < 40)
    (top, left), (bottom, end) = window.pixel(y - 4, x - 4), window.pixel(y + 4, x + 4)
    # Half of the line lies outside of the patch: 3 % of its side.
    line = 0.03 * (bottom - top)
    expected = (top - line, bottom + line, left - line, end + line)
    found = (down.min(), down.max() + 1, right.min(), right.max() + 1)
    np.testing.assert_allclose(found, expected, atol=1.5)


def test_the_next_answer_takes_the_place_of_the_last(window: Window, results: Results) -> None:
    add_results(window.viewer, results)
    window.click(*middle_of(20, 40))
    window.answered()
    window.layer("similarity").opacity = 0.3
    window.panel.count.setValue(5)
    window.answered(5)
    assert len(window.layer("similar").data) == 6

    window.click(*middle_of(40, 70))
    window.qtbot.waitUntil(lambda: item(window.panel, 0, 2) == "70", timeout=WAIT_MS)
    assert window.panel.cell.text() == "row 40, column 70"
    assert window.layer("similarity").opacity == 0.3
    np.testing.assert_allclose(window.layer("asked").data[0].mean(0), middle_of(40, 70), atol=1e-9)

    window.panel.similar.itemClicked.emit(window.panel.similar.topLevelItem(3), 0)
    row, column = (int(item(window.panel, 3, n)) for n in (1, 2))
    np.testing.assert_allclose(window.viewer.camera.center[-2:], middle_of(row, column), atol=1e-6)


def test_what_cannot_be_answered_is_said_in_words(
    window: Window, results: Results, slide: Path, tmp_path: Path
) -> None:
    add_results(window.viewer, results)
    window.click(*middle_of(20, 40))
    window.answered()
    window.click(*middle_of(2, 2))
    window.says("There is no patch here: the run took it for background")
    assert not window.kinds() & {"asked", "similar", "similarity"}
    window.click(*middle_of(20, 40))
    window.answered()
    window.click(*middle_of(*UNREADABLE))
    window.says("This patch could not be read")
    assert window.panel.cell.text() == "row 30, column 50"
    assert window.panel.similar.topLevelItemCount() == 0
    assert window.kinds() & {"asked", "similar", "similarity"} == {"asked"}

    window.viewer.layers.clear()
    assert "Open the results" in window.panel.message.text()
    unfinished = write_store(
        tmp_path / "unfinished.gigavim.zarr", slide, labels_of_slide(), patch=PATCH, finished=False
    )
    add_results(window.viewer, open_results(unfinished))
    assert "not complete (running)" in window.panel.message.text()
    window.click(*middle_of(20, 40))
    window.qtbot.wait(300)
    assert "not complete (running)" in window.panel.message.text()
    add_results(window.viewer, results)
    window.viewer.layers.selection.active = None
    assert "select a layer" in window.panel.message.text()


def test_only_clicks_ask_and_only_while_they_are_meant_to(window: Window, results: Results) -> None:
    add_results(window.viewer, results)
    asked: list[tuple[float, float]] = []
    window.panel.ask = lambda y, x: asked.append((y, x))  # type: ignore[method-assign]
    place = middle_of(20, 40)
    before = window.viewer.camera.center
    window.drag(place, (40, 60))
    assert not asked
    moved = np.array(before[-2:]) - window.viewer.camera.center[-2:]
    np.testing.assert_allclose(moved, np.array((40, 60)) / window.viewer.camera.zoom, rtol=0.1)

    window.drag(place, (2, 1))
    assert len(asked) == 1
    window.panel.toggle.click()
    window.click(*place)
    window.panel.toggle.click()
    drawn = window.viewer.add_shapes(ndim=2)
    drawn.mode = "add_rectangle"
    window.click(*place)
    drawn.mode = "pan_zoom"
    assert len(asked) == 1
    window.click(*place)
    assert len(asked) == 2
    np.testing.assert_allclose(asked[1], place, atol=1 / window.viewer.camera.zoom)

    window.viewer.window.remove_dock_widget(window.panel)
    window.click(*place)
    assert len(asked) == 2


def test_a_scene_is_asked_where_it_lies(window: Window, tmp_path: Path) -> None:
    labels = np.zeros((32, 40), np.uint8)
    labels[4:28, 4:36] = 1
    labels[:, 20:] *= 3
    scene = write_scene(tmp_path / "scene.tif")
    store = write_store(tmp_path / "scene.gigavim.zarr", scene, labels, patch=8)
    add_tokens(store, labels)
    results = open_results(store)
    add_results(window.viewer, results)
    # 10 m a pixel; y is minus the northing.
    y, x = results.world[0, 2] + 10.5 * 80, results.world[1, 2] + 30.5 * 80
    window.viewer.reset_view()
    window.click(y, x)
    window.answered()
    assert window.panel.cell.text() == "row 10, column 30"
    assert window.panel.corner.text() == "x 240, y 80"
    np.testing.assert_allclose(window.layer("asked").data[0].mean(0), (y, x))
    assert window.layer("similarity").units == window.layer("classes").units


def item(panel: AskPanel, row: int, column: int) -> str:
    """Return the words of a similar patch, or none."""
    shown = panel.similar.topLevelItem(row)
    return "" if shown is None else str(shown.text(column))
