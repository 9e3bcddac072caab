"""The dock "Results", used as a person would use it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_runs
import zarr
from napari.utils.notifications import notification_manager
from numpy.typing import NDArray
from PIL import Image
from qtpy.QtCore import QPoint, QRect, Qt
from qtpy.QtWidgets import QFileDialog

from gigavim.pipelines.report import Summary
from gigavim.plugins.napari.layers import add_results
from gigavim.plugins.napari.results import open_results
from gigavim.plugins.napari.results_panel import ResultsPanel
from gigavim.plugins.napari.window import attach
from images import tissue, write_slide
from stores import write_store

LEFT = Qt.MouseButton.LeftButton


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the stores are, made before there is a window.

    Triton, which PyTorch imports, crashes once Mesa has drawn: each has an LLVM of its own.
    """
    folder = tmp_path_factory.getbasetemp()
    for made in (
        small_runs.classified_scene,
        small_runs.clustered_slide,
        small_runs.slide_with_nuclei,
    ):
        made(folder)
    return folder


@pytest.fixture
def panel(folder: Path, viewer: Any, qtbot: Any) -> ResultsPanel:
    panel = ResultsPanel(viewer)
    viewer.window.add_dock_widget(panel, name="Results")
    attach(viewer)
    return panel


def show(viewer: Any, summary: Summary, panel: ResultsPanel, qtbot: Any) -> Any:
    """Open results, wait until the panel has read them, and return the layer of the class map."""
    assert summary.store is not None
    add_results(viewer, open_results(summary.store))
    wait_for_map(panel, qtbot)
    return viewer.layers.selection.active


def wait_for_map(panel: ResultsPanel, qtbot: Any) -> None:
    qtbot.waitUntil(lambda: panel.pictures.overlay.isEnabled(), timeout=20_000)


def tick(panel: ResultsPanel, row: int, qtbot: Any) -> None:
    """Click on the box of a class."""
    line: QRect = panel.classes.visualItemRect(panel.classes.item(row, 0))
    place = QPoint(line.left() + 12, line.center().y())
    qtbot.mouseClick(panel.classes.viewport(), LEFT, pos=place)


def table(panel: ResultsPanel) -> list[list[str]]:
    rows, columns = panel.classes.rowCount(), panel.classes.columnCount()
    return [[panel.classes.item(r, c).text() for c in range(columns)] for r in range(rows)]


def seen(layer: Any) -> NDArray[np.uint8]:
    """Return the whole class map as the layer has it."""
    return np.asarray(layer.data[0] if layer.multiscale else layer.data)


def view_box(viewer: Any) -> NDArray[np.float64]:
    """Return the part of the world that is seen: top, left, bottom, right."""
    half = np.array(viewer.canvas.size) / viewer.scene.camera.zoom / 2
    middle = np.array(viewer.scene.camera.center[-2:])
    return np.concatenate([middle - half, middle + half])


def test_a_box_hides_a_class_and_shows_it_again(
    viewer: Any, panel: ResultsPanel, folder: Path, qtbot: Any
) -> None:
    layer = show(viewer, small_runs.classified_scene(folder), panel, qtbot)
    assert [line[0] for line in table(panel)] == ["water", "meadow", "rock"]
    before = seen(layer)

    def is_seen(colour: tuple[int, int, int]) -> bool:
        picture = viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)
        return bool((abs(picture - colour).max(-1) <= 2).any())

    layer.opacity = 1
    green = (0, 255, 0)
    assert is_seen(green)
    tick(panel, 1, qtbot)
    assert not is_seen(green)
    np.testing.assert_array_equal(seen(layer), before)
    tick(panel, 1, qtbot)
    assert is_seen(green)


def test_the_threshold_cuts_map_and_table_and_leaves_the_store(
    viewer: Any, panel: ResultsPanel, folder: Path, qtbot: Any
) -> None:
    summary = small_runs.classified_scene(folder)
    layer = show(viewer, summary, panel, qtbot)
    group = zarr.open_group(summary.store, mode="r")
    stored, index = group["labels/classify/0"][:], group["tokens/grid_index"][:]
    highest = group["tokens/probs"][:].astype(np.float32).max(1)
    assert [line[1] for line in table(panel)] == [f"{a:.3g}" for a in summary.class_areas.values()]
    last = seen(layer)
    for _ in range(4):
        # Up by a tenth.
        qtbot.keyClick(panel.threshold.slider, Qt.Key.Key_PageUp)
        threshold = panel.threshold.value
        kept = highest >= np.float32(threshold)
        expected = np.zeros_like(stored)
        expected[tuple(index[kept].T)] = stored[tuple(index[kept].T)]
        np.testing.assert_array_equal(seen(layer), expected)
        assert not ((seen(layer) > 0) & (last == 0)).any()
        last = seen(layer)
        areas = np.bincount(expected.ravel(), minlength=4)[1:] * 0.0064
        assert [line[1] for line in table(panel)] == [f"{a:.3g}" if a else "–" for a in areas]
    assert threshold == pytest.approx(0.4)
    panel.threshold.slider.setValue(100)
    assert (seen(layer) > 0).sum() == (highest >= 1).sum()
    panel.threshold.slider.setValue(0)
    np.testing.assert_array_equal(seen(layer), stored)
    np.testing.assert_array_equal(zarr.open_group(summary.store)["labels/classify/0"][:], stored)


def test_opacity_is_that_of_the_layer(
    viewer: Any, panel: ResultsPanel, folder: Path, qtbot: Any
) -> None:
    layer = show(viewer, small_runs.classified_scene(folder), panel, qtbot)
    assert panel.opacity.value == pytest.approx(layer.opacity)
    qtbot.keyClick(panel.opacity.slider, Qt.Key.Key_End)
    assert layer.opacity == 1
    layer.opacity = 0.25
    assert panel.opacity.value == pytest.approx(0.25)


def test_one_is_led_from_region_to_region_and_back(
    viewer: Any, panel: ResultsPanel, folder: Path, qtbot: Any
) -> None:
    layer = show(viewer, small_runs.slide_with_nuclei(folder), panel, qtbot)
    qtbot.mouseClick(panel.regions.next, LEFT)
    qtbot.waitUntil(lambda: "1 of 12" in panel.regions.words.text(), timeout=10_000)
    first = view_box(viewer)
    # A nucleus is in the middle, and takes a part of the view.
    middle = (first[:2] + first[2:]) / 2
    assert layer.get_value(middle, world=True)[1] == 1
    assert 20 < (first[2:] - first[:2]).min() < 250
    qtbot.mouseClick(panel.regions.next, LEFT)
    assert "2 of 12" in panel.regions.words.text()
    second = view_box(viewer)
    assert not np.allclose(first, second)
    qtbot.mouseClick(panel.regions.previous, LEFT)
    assert view_box(viewer) == pytest.approx(first)
    qtbot.mouseClick(panel.regions.previous, LEFT)
    assert "12 of 12" in panel.regions.words.text()
    # Half of them are less probable than that.
    panel.threshold.slider.setValue(90)
    assert table(panel) == [["nucleus", "6", "188"]]
    qtbot.mouseClick(panel.regions.previous, LEFT)
    qtbot.waitUntil(lambda: "6 of 6" in panel.regions.words.text(), timeout=10_000)


def test_a_double_click_on_an_error_goes_there(
    viewer: Any, panel: ResultsPanel, folder: Path, qtbot: Any
) -> None:
    show(viewer, small_runs.clustered_slide(folder), panel, qtbot)
    assert not panel.threshold.isEnabled()
    assert "no probabilities" in panel.threshold.toolTip()
    errors = panel.about.errors
    place = errors.visualItemRect(errors.item(0)).center()
    qtbot.mouseClick(errors.viewport(), LEFT, pos=place)
    qtbot.mouseDClick(errors.viewport(), LEFT, pos=place)
    top, left, bottom, right = view_box(viewer)
    assert ((top + bottom) / 2, (left + right) / 2) == pytest.approx((320, 320))
    assert 128 < min(bottom - top, right - left) < 512


def test_runs_and_maps_can_be_chosen_and_follow_the_selected_layer(
    viewer: Any, panel: ResultsPanel, folder: Path, qtbot: Any
) -> None:
    assert "its class maps show here" in panel.message.text()
    assert not panel.about.isVisible()
    nuclei = show(viewer, small_runs.slide_with_nuclei(folder), panel, qtbot)
    clusters = show(viewer, small_runs.clustered_slide(folder), panel, qtbot)
    assert panel.run.currentText() == "broken"
    assert [line[0] for line in table(panel)] == ["cluster 1", "cluster 2", "cluster 3"]
    qtbot.keyClicks(panel.run, "d")
    wait_for_map(panel, qtbot)
    assert (panel.run.currentText(), panel.head.currentText()) == ("discs", "nuclei")
    assert table(panel) == [["nucleus", "12", "375"]]
    assert nuclei.visible
    assert not clusters.visible
    assert viewer.layers.selection.active is nuclei
    viewer.layers.selection.active = clusters
    assert panel.run.currentText() == "broken"
    wait_for_map(panel, qtbot)
    # What was set for a map is still so when one comes back to it.
    viewer.layers.selection.active = nuclei
    wait_for_map(panel, qtbot)
    panel.threshold.slider.setValue(90)
    viewer.layers.selection.active = clusters
    viewer.layers.selection.active = nuclei
    wait_for_map(panel, qtbot)
    assert panel.threshold.value == pytest.approx(0.9)
    assert table(panel) == [["nucleus", "6", "188"]]
    viewer.layers.clear()
    assert "its class maps show here" in panel.message.text()
    assert panel.run.count() == 0


def test_a_store_that_is_gone_is_told_in_words(
    viewer: Any, panel: ResultsPanel, folder: Path, qtbot: Any, tmp_path: Path
) -> None:
    summary = small_runs.classified_scene(folder)
    assert summary.store is not None
    copy = tmp_path / "copy.gigavim.zarr"
    shutil.copytree(summary.store, copy)
    add_results(viewer, open_results(copy))
    wait_for_map(panel, qtbot)
    shutil.rmtree(copy)
    panel.refresh()
    assert str(copy) in panel.message.text().replace("\u200b", "")
    assert panel.message.isVisible()
    assert not panel.pictures.view.isVisible()


def test_a_run_that_has_not_come_to_its_end_is_described(
    viewer: Any, panel: ResultsPanel, qtbot: Any, tmp_path: Path
) -> None:
    image = write_slide(tmp_path / "slide.svs", tissue(64, 96))
    labels = np.ones((4, 6), np.uint8)
    store = write_store(tmp_path / "s.gigavim.zarr", image, labels, patch=16, finished=False)
    add_results(viewer, open_results(store))
    qtbot.waitUntil(panel.about.isVisible)
    assert "no finished class map" in panel.message.text()
    assert not panel.classes.isVisible()
    said = [panel.about.words.itemAt(row).widget().text() for row in range(2)]
    assert said[0] == "Status"
    assert said[1].startswith("not complete: ")


def test_pictures_show_what_is_shown(
    viewer: Any,
    panel: ResultsPanel,
    folder: Path,
    qtbot: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    summary = small_runs.classified_scene(folder)
    show(viewer, summary, panel, qtbot)
    tick(panel, 1, qtbot)
    panel.threshold.slider.setValue(40)
    for button, name in (
        (panel.pictures.view, "view.png"),
        (panel.pictures.overlay, "overlay.png"),
    ):
        path = tmp_path / name
        monkeypatch.setattr(
            QFileDialog, "getSaveFileName", lambda *_, path=path: (str(path), "PNG (*.png)")
        )
        qtbot.mouseClick(button, LEFT)
        qtbot.waitUntil(path.exists, timeout=20_000)
        picture = np.asarray(Image.open(path).convert("RGB"))
        # The legend has the classes that are shown, and no others.
        for colour, is_there in (((0, 255, 0), False), ((99, 99, 99), True)):
            assert (picture == colour).all(-1).any() == is_there
    # The bar in the view would be there twice.
    assert viewer.canvas.overlays.scale_bar.visible
    # What cannot be written is told, and the viewer goes on.
    missing = str(tmp_path / "missing" / "view.png")
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (missing, ""))
    qtbot.mouseClick(panel.pictures.view, LEFT)
    told = notification_manager.records[-1]
    assert str(told.severity) == "error"
    assert missing in told.message
    # Who thinks better of it gets nothing.
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: ("", ""))
    qtbot.mouseClick(panel.pictures.view, LEFT)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["overlay.png", "view.png"]
