"""The dock "Run here", used as a person does, on real runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari.utils.notifications import notification_manager
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import QApplication, QMessageBox, QPushButton

from gigavim.geometry import Grid, Spacing
from gigavim.masks import read_mask
from gigavim.plugins.napari.areas import drawn, geojson
from gigavim.plugins.napari.run_here import VIEW, RunPanel, output_folder
from gigavim.plugins.napari.world import layer_affine, world_of_level0
from gigavim.sources import open_source
from gigavim.store import ResultStore
from images import ORIGIN, tissue, write_model, write_scene, write_slide

WAIT_MS = 300_000


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """Return a slide of six blocks at 0.5 µm/px."""
    return write_slide(tmp_path / "slide.svs", tissue(2048, 3072))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "rgb.safetensors")


@pytest.fixture
def panel(viewer: Any, qtbot: Any, slide: Path) -> Iterator[RunPanel]:
    """Return the panel in a window that shows the slide."""
    add_image(viewer, slide)
    panel = RunPanel(viewer)
    viewer.window.add_dock_widget(panel, name="Run here")
    yield panel
    if panel._run is not None:
        panel._end()


def add_image(viewer: Any, path: Path) -> Any:
    """Show a slide where it lies."""
    world = world_of_level0(Spacing(0.5, 0.5, "µm", "test"))
    about = {"kind": "image", "head": None, "store": None, "source": str(path)}
    pixels = tifffile.imread(path)
    levels = [pixels, pixels[::4, ::4]]
    return viewer.add_image(
        levels, name="slide", affine=layer_affine(world), multiscale=True,
        metadata={"gigavim": about},
    )  # fmt: skip


def click(qtbot: Any, button: QPushButton) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def choose_model(panel: RunPanel, model: Path) -> None:
    panel.model.insertItem(0, model.name, str(model))
    panel.model.setCurrentIndex(0)


def kinds(viewer: Any) -> list[str]:
    return [layer.metadata["gigavim"]["kind"] for layer in viewer.layers]


def test_a_slide_is_run_by_a_click_and_its_map_appears(
    panel: RunPanel, viewer: Any, qtbot: Any, slide: Path, model: Path
) -> None:
    choose_model(panel, model)
    seen = set[str]()
    click(qtbot, panel.start)
    assert not panel.start.isEnabled()

    def done() -> bool:
        seen.add(panel.message.text().split(" ")[0])
        return panel.start.isEnabled() and "classes" in kinds(viewer)

    qtbot.waitUntil(done, timeout=WAIT_MS)
    store = slide.with_name("slide.gigavim.zarr")
    assert panel.message.text() == "slide.gigavim.zarr is complete"
    assert ResultStore.open(store).complete
    assert "running" not in kinds(viewer)
    assert "starting…" in seen
    assert not panel.bar.isVisible()


def test_a_run_that_is_stopped_looks_unfinished_and_goes_on_to_the_same_bits(
    panel: RunPanel, viewer: Any, qtbot: Any, slide: Path, model: Path, tmp_path: Path
) -> None:
    choose_model(panel, model)
    click(qtbot, panel.start)
    store = slide.with_name("slide.gigavim.zarr")
    begun = store / "zarr.json"
    qtbot.waitUntil(lambda: panel.stop.isEnabled() and begun.exists(), timeout=WAIT_MS)
    click(qtbot, panel.stop)
    qtbot.waitUntil(lambda: panel.start.isEnabled(), timeout=WAIT_MS)
    assert panel.message.text() == "stopped; the same run continues where it stopped"
    assert not ResultStore.open(store).complete
    assert "classes" not in kinds(viewer)
    click(qtbot, panel.start)
    qtbot.waitUntil(lambda: "classes" in kinds(viewer), timeout=WAIT_MS)
    assert "running" not in kinds(viewer)
    unbroken = tmp_path / "unbroken.gigavim.zarr"
    command = [sys.executable, "-m", "gigavim", "run", str(slide), "-q", "-m", str(model)]
    subprocess.run([*command, "-o", str(unbroken)], check=True)
    first, second = ResultStore.open(store), ResultStore.open(unbroken)
    for name in ("tokens/features", "tokens/coords", "image/vector", "labels/clusters/0"):
        np.testing.assert_array_equal(first.values(name), second.values(name))


def test_a_drawn_shape_is_run_in_a_store_of_its_own(
    panel: RunPanel, viewer: Any, qtbot: Any, slide: Path, model: Path
) -> None:
    choose_model(panel, model)
    box = np.array([[400, 500], [400, 700], [600, 700], [600, 500]], float)  # µm
    viewer.add_shapes([box], shape_type="rectangle", name="roi")
    panel.area.setCurrentText("Shapes of roi")
    viewer.layers.selection.active = viewer.layers["slide"]
    assert panel.area.currentText() == "Shapes of roi"
    click(qtbot, panel.start)
    qtbot.waitUntil(lambda: "classes" in [
        (layer.metadata.get("gigavim") or {}).get("kind") for layer in viewer.layers
    ], timeout=WAIT_MS)  # fmt: skip
    (store,) = slide.parent.glob("slide.area-*.gigavim.zarr")
    assert not slide.with_name("slide.gigavim.zarr").exists()
    coords = ResultStore.open(store).values("tokens/coords")
    # The middle of each patch lies in the box; half a patch is 4 µm.
    middle = coords * 0.5 + 4
    assert (middle.min(0) >= (496, 396)).all()
    assert (middle.max(0) <= (704, 604)).all()
    assert len(coords) == pytest.approx((200 / 8) ** 2, rel=0.1)


def test_what_the_view_shows_is_what_is_meant(panel: RunPanel, viewer: Any) -> None:
    viewer.scene.camera.center = (512, 768)
    viewer.scene.camera.zoom = 4
    # A picture of the view has a pixel for each of the canvas.
    height, width = viewer.screenshot(canvas_only=True, flash=False).shape[:2]
    panel.area.setCurrentText(VIEW)
    (polygon,) = panel._polygons() or []
    np.testing.assert_allclose(polygon.min(0), (512 - height / 8, 768 - width / 8), atol=0.5)
    np.testing.assert_allclose(polygon.max(0), (512 + height / 8, 768 + width / 8), atol=0.5)


def test_shapes_become_polygons_in_pixels_of_the_slide(viewer: Any, slide: Path) -> None:
    box = np.array([[0, 0], [0, 10], [20, 10], [20, 0]], float)
    shapes = viewer.add_shapes(
        [box, box + 50, box[:3], box[:2]],
        shape_type=["rectangle", "ellipse", "path", "line"],
        translate=(100, 200),
    )
    rectangle, ellipse = drawn(shapes)
    np.testing.assert_allclose(rectangle, box + np.array([100, 200]))
    np.testing.assert_allclose(ellipse.mean(0), (160, 255))
    np.testing.assert_allclose(np.ptp(ellipse, axis=0), (20, 10))
    content = json.loads(geojson([rectangle], open_source(str(slide))))
    (feature,) = content["features"]
    (ring,) = feature["geometry"]["coordinates"]
    assert ring == [[400, 200], [420, 200], [420, 240], [400, 240], [400, 200]]


def test_an_area_of_a_scene_is_written_in_its_crs(tmp_path: Path) -> None:
    scene = open_source(str(write_scene(tmp_path / "scene.tif")))
    grid = Grid.over(256, 320, patch=8)
    east, north = ORIGIN
    # Rows 4 to 8 and columns 10 to 20 of the grid, whose cells are 80 m.
    x, y = np.array([800, 1600, 1600, 800]) + east, north - np.array([320, 320, 640, 640])
    (tmp_path / "area.geojson").write_text(geojson([np.column_stack([-y, x])], scene))
    mask = read_mask(str(tmp_path / "area.geojson"), scene, grid)
    rows, columns = np.nonzero(mask.values)
    assert (rows.min() * mask.ratio_y, (rows.max() + 1) * mask.ratio_y) == (32, 64)
    assert (columns.min() * mask.ratio_x, (columns.max() + 1) * mask.ratio_x) == (80, 160)


def test_without_an_image_the_panel_says_what_is_missing(viewer: Any) -> None:
    panel = RunPanel(viewer)
    viewer.window.add_dock_widget(panel, name="Run here")
    assert panel.message.text() == "Open a slide or a scene first."
    assert not panel.start.isEnabled()


def test_what_is_wrong_is_said_in_words_and_can_be_mended(
    panel: RunPanel, viewer: Any, qtbot: Any, slide: Path, tmp_path: Path
) -> None:
    infrared = write_model(tmp_path / "ir.safetensors", bands=("nir", "swir1"))
    choose_model(panel, infrared)
    click(qtbot, panel.start)
    qtbot.waitUntil(lambda: panel.start.isEnabled(), timeout=WAIT_MS)
    assert "takes nir, swir1, and it has red, green, blue" in panel.message.text()
    assert "takes nir, swir1" in str(notification_manager.records[-1].message)

    (tmp_path / "file").write_text("no folder")
    panel.folder.setText(str(tmp_path / "file" / "below"))
    click(qtbot, panel.start)
    qtbot.waitUntil(lambda: panel.start.isEnabled(), timeout=WAIT_MS)
    assert "cannot write" in panel.message.text()

    viewer.add_shapes([np.zeros((2, 2))], shape_type="line", name="lines")
    panel.folder.setText(str(tmp_path))
    panel.area.setCurrentText("Shapes of lines")
    click(qtbot, panel.start)
    qtbot.waitUntil(lambda: panel.start.isEnabled(), timeout=WAIT_MS)
    assert "draw a rectangle" in panel.message.text()
    assert kinds_of_ours(viewer) == ["image"]


def kinds_of_ours(viewer: Any) -> list[str]:
    return [
        layer.metadata["gigavim"]["kind"] for layer in viewer.layers if "gigavim" in layer.metadata
    ]


@pytest.mark.parametrize(
    ("answer", "closes", "goes_on"),
    [("Stop it", True, False), ("Stay", False, True), ("Let it go on", True, True)],
)
def test_closing_the_window_asks_what_becomes_of_a_run(
    panel: RunPanel, viewer: Any, qtbot: Any, model: Path, answer: str, closes: bool, goes_on: bool
) -> None:
    choose_model(panel, model)
    click(qtbot, panel.start)
    # It has not got far: PyTorch alone takes seconds to begin.
    qtbot.waitUntil(lambda: panel.stop.isEnabled(), timeout=WAIT_MS)
    run = panel._run
    assert run is not None

    def press() -> None:
        box = QApplication.activeModalWidget()
        if not isinstance(box, QMessageBox):
            QTimer.singleShot(100, press)
            return
        (button,) = (b for b in box.buttons() if b.text() == answer)
        click(qtbot, button)

    QTimer.singleShot(100, press)
    # What Qt asks before it closes the window; the fixture closes it, and cannot do so twice.
    is_held = panel.eventFilter(viewer.window._qt_window, QCloseEvent())
    assert is_held != closes
    assert run.goes_on() == goes_on
    if panel._run is None and goes_on:
        run.stop()
        run.ended()


def test_a_viewer_that_a_script_closes_leaves_no_run_behind(
    panel: RunPanel, viewer: Any, qtbot: Any, model: Path
) -> None:
    choose_model(panel, model)
    click(qtbot, panel.start)
    qtbot.waitUntil(lambda: panel.stop.isEnabled(), timeout=WAIT_MS)
    run = panel._run
    assert run is not None
    viewer.close()
    assert not run.goes_on()


def test_results_go_beside_the_image_or_where_one_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert output_folder(str(tmp_path / "slide.svs")) == tmp_path
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert output_folder(str(tmp_path / "slide.svs")).name == "gigavim"
