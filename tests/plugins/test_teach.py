"""The dock is driven as a person would: by clicks, and with the mouse on the canvas."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Layer
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtWidgets import QApplication, QColorDialog, QFileDialog

from gigavim.annotations import read_annotations
from gigavim.checkpoint import load_model
from gigavim.config import Resources, RunConfig
from gigavim.pipelines.run import run_image
from gigavim.plugins.napari.layers import add_results, result_layers
from gigavim.plugins.napari.results import open_results
from gigavim.plugins.napari.teach import TeachPanel
from gigavim.sources import open_source
from gigavim.store import ResultStore
from images import write_model, write_scene, write_slide

WAIT_MS = 120_000


@pytest.fixture(scope="module")
def slide_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a slide whose tissue is pink on the left and dark on the right."""
    folder = tmp_path_factory.mktemp("slide")
    model = write_model(folder / "tiny.safetensors")
    store = folder / "slide.gigavim.zarr"
    config = RunConfig(model=str(model))
    run_image(str(write_slide(folder / "slide.svs")), store, config, Resources(device="cpu"))
    return store


@pytest.fixture(scope="module")
def scene_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    bands = ("blue", "green", "red", "nir")
    model = write_model(folder / "four.safetensors", bands=bands, patch=8)
    store = folder / "scene.gigavim.zarr"
    config = RunConfig(model=str(model))
    run_image(str(write_scene(folder / "scene.tif")), store, config, Resources(device="cpu"))
    return store


def show(viewer: Any, store: Path) -> TeachPanel:
    add_results(viewer, open_results(store))
    panel = TeachPanel(viewer)
    viewer.window.add_dock_widget(panel, name="Annotate and teach")
    viewer.reset_view()
    QApplication.processEvents()
    return panel


def drag(viewer: Any, level0: Sequence[tuple[float, float]], affine: Any) -> None:
    """Draw along (row, column) of level 0 with the left button held down."""
    canvas = viewer.window._qt_viewer.canvas
    native = canvas.native
    points = []
    for row, column in np.concatenate([np.linspace(a, b, 12) for a, b in pairwise(level0)]):
        y, x = (affine @ (row, column, 1))[:2]
        centre_y, centre_x = viewer.camera.center[-2:]
        points.append(
            QPointF(
                native.width() / 2 + (x - centre_x) * viewer.camera.zoom,
                native.height() / 2 + (y - centre_y) * viewer.camera.zoom,
            )
        )
    left, none = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton

    def send(kind: Any, at: QPointF, button: Any, buttons: Any) -> None:
        where = QPointF(native.mapToGlobal(QPoint(int(at.x()), int(at.y()))))
        modifiers = Qt.KeyboardModifier.NoModifier
        QApplication.sendEvent(native, QMouseEvent(kind, at, where, button, buttons, modifiers))
        QApplication.processEvents()

    send(QEvent.Type.MouseMove, points[0], none, none)
    send(QEvent.Type.MouseButtonPress, points[0], left, left)
    for point in points[1:]:
        send(QEvent.Type.MouseMove, point, none, left)
    send(QEvent.Type.MouseButtonRelease, points[-1], left, none)


def click(qtbot: Any, button: Any) -> None:
    assert button.isEnabled()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def of_probe(viewer: Any, kind: str) -> list[Any]:
    return [
        layer for layer in viewer.layers
        if (layer.metadata.get("gigavim") or {}).get("head") == "probe"
        and layer.metadata["gigavim"]["kind"] == kind
    ]  # fmt: skip


def cell(panel: TeachPanel, row: int, column: int) -> str:
    item = panel.classes.item(row, column)
    assert item is not None
    return str(item.text())


def wait_for_map(qtbot: Any, panel: TeachPanel, fitted: Callable[[], bool]) -> None:
    def is_settled() -> bool:
        return not (panel._is_fitting or panel._is_due or panel._clock.isActive())

    qtbot.waitUntil(lambda: is_settled() and fitted(), timeout=WAIT_MS)


def draw_two_classes(qtbot: Any, viewer: Any, panel: TeachPanel) -> None:
    """Draw a stroke on the pink tissue and one on the dark one."""
    affine = open_results(Path(panel._results.store.path)).world  # type: ignore[union-attr]
    panel.classes.setCurrentCell(0, 0)
    click(qtbot, panel.tools["Stroke"])
    drag(viewer, [(480, 480), (540, 700)], affine)
    panel.classes.setCurrentCell(1, 0)
    click(qtbot, panel.tools["Stroke"])
    drag(viewer, [(420, 840), (600, 1000)], affine)


def test_strokes_drawn_with_the_mouse_map_the_slide(
    qtbot: Any, viewer: Any, slide_store: Path
) -> None:
    panel = show(viewer, slide_store)
    draw_two_classes(qtbot, viewer, panel)
    wait_for_map(qtbot, panel, lambda: bool(of_probe(viewer, "classes")))

    (shapes,) = (layer for layer in viewer.layers if layer.name == "annotations")
    assert shapes.features["class"].tolist() == ["class 1", "class 2"]
    assert shapes.shape_type == ["path", "path"]
    # Strokes lie where the mouse was, in level-0 pixels; napari may leave out the last step of 20.
    np.testing.assert_allclose(shapes.data[0][0], (480, 480), atol=2)
    np.testing.assert_allclose(shapes.data[0][-1], (540, 700), atol=25)
    assert not np.allclose(shapes.edge_color[0], shapes.edge_color[1])
    # What is drawn on stays selected and on top.
    assert viewer.layers.selection.active is shapes
    assert viewer.layers[-1] is shapes
    assert shapes.mode == "add_path"

    (labels,) = of_probe(viewer, "classes")
    found = np.asarray(labels.data)
    assert (found[20:44, 32:47] == 1).mean() > 0.9
    assert (found[20:44, 49:64] == 2).mean() > 0.9
    world = panel._results.world  # type: ignore[union-attr]
    row, column, _ = world @ (512, 600, 1)
    assert labels.get_value((row, column), world=True) == 1
    probabilities = of_probe(viewer, "probabilities")
    assert [layer.metadata["gigavim"]["class"] for layer in probabilities] == ["class 1", "class 2"]
    assert not any(layer.visible for layer in probabilities)
    assert cell(panel, 0, 1) == "1"
    assert int(cell(panel, 0, 2)) > 10
    assert cell(panel, 0, 3).endswith("%")
    assert "two shapes or more" in panel.status.text()


def test_the_map_follows_each_change(qtbot: Any, viewer: Any, slide_store: Path) -> None:
    panel = show(viewer, slide_store)
    draw_two_classes(qtbot, viewer, panel)
    wait_for_map(qtbot, panel, lambda: bool(of_probe(viewer, "classes")))
    world = panel._results.world  # type: ignore[union-attr]

    # More of each: then there is something to hold out.
    drag(viewer, [(640, 840), (660, 960)], world)
    panel.classes.setCurrentCell(0, 0)
    drag(viewer, [(380, 600), (400, 720)], world)
    wait_for_map(qtbot, panel, lambda: "held out" in panel.status.text())
    assert "2 parts, each shape whole" in panel.status.text()
    assert [cell(panel, row, 1) for row in (0, 1)] == ["2", "2"]

    # A third class, in a box; its map comes into the same layers.
    click(qtbot, panel.add_class)
    click(qtbot, panel.tools["Box"])
    drag(viewer, [(700, 700), (760, 800)], world)
    wait_for_map(qtbot, panel, lambda: len(of_probe(viewer, "probabilities")) == 3)
    (labels,) = of_probe(viewer, "classes")
    assert 3 in np.asarray(labels.data)
    assert labels.features["class"].tolist()[1:] == ["class 1", "class 2", "class 3"]

    # Without its shape it goes.
    (shapes,) = (layer for layer in viewer.layers if layer.name == "annotations")
    shapes.selected_data = {4}
    shapes.remove_selected()
    wait_for_map(qtbot, panel, lambda: len(of_probe(viewer, "probabilities")) == 2)
    assert 3 not in np.asarray(labels.data)


def test_one_class_alone_is_said_in_words(qtbot: Any, viewer: Any, slide_store: Path) -> None:
    panel = show(viewer, slide_store)
    panel.follow.setChecked(False)
    click(qtbot, panel.tools["Ellipse"])
    drag(viewer, [(450, 500), (550, 700)], panel._results.world)  # type: ignore[union-attr]
    assert cell(panel, 0, 1) == "1"
    qtbot.wait(1000)
    assert panel.status.text() == ""

    click(qtbot, panel.fit)
    wait_for_map(qtbot, panel, lambda: "alone lies" in panel.status.text())
    assert not of_probe(viewer, "classes")


def test_classes_are_renamed_recoloured_given_and_removed(
    qtbot: Any, viewer: Any, slide_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = show(viewer, slide_store)
    panel.follow.setChecked(False)
    draw_two_classes(qtbot, viewer, panel)
    (shapes,) = (layer for layer in viewer.layers if layer.name == "annotations")

    item = panel.classes.item(0, 0)
    assert item is not None
    place = panel.classes.visualItemRect(item)
    monkeypatch.setattr(QColorDialog, "getColor", lambda colour, *_: colour.fromRgb(1, 2, 3))
    left = Qt.MouseButton.LeftButton
    qtbot.mouseDClick(panel.classes.viewport(), left, pos=place.topLeft() + QPoint(8, 10))
    assert panel.classes.colours["class 1"] == (1, 2, 3)
    np.testing.assert_allclose(shapes.edge_color[0, :3], np.array([1, 2, 3]) / 255, atol=1e-6)

    item.setText("tumour")
    assert shapes.features["class"].tolist() == ["tumour", "class 2"]
    item.setText("class 2")  # which is there already
    assert item.text() == "tumour"

    shapes.selected_data = {0}
    panel.classes.setCurrentCell(1, 0)
    click(qtbot, panel.give_class)
    assert shapes.features["class"].tolist() == ["class 2", "class 2"]
    click(qtbot, panel.remove_class)  # which has shapes
    assert list(panel.classes.colours) == ["tumour", "class 2"]
    panel.classes.setCurrentCell(0, 0)
    click(qtbot, panel.remove_class)
    assert list(panel.classes.colours) == ["class 2"]


def test_annotations_are_saved_and_loaded(
    qtbot: Any, viewer: Any, slide_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = show(viewer, slide_store)
    draw_two_classes(qtbot, viewer, panel)
    wait_for_map(qtbot, panel, lambda: bool(of_probe(viewer, "classes")))
    (labels,) = of_probe(viewer, "classes")
    before = np.asarray(labels.data)
    path = tmp_path / "mine.geojson"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(path), ""))
    click(qtbot, panel.files.save)
    qtbot.waitUntil(path.exists, timeout=WAIT_MS)
    features = json.loads(path.read_text())["features"]
    assert [each["properties"]["classification"]["name"] for each in features] == [
        "class 1",
        "class 2",
    ]

    for layer in [*of_probe(viewer, "classes"), *of_probe(viewer, "probabilities")]:
        viewer.layers.remove(layer)
    viewer.layers.remove("annotations")
    click(qtbot, panel.files.load)
    wait_for_map(qtbot, panel, lambda: bool(of_probe(viewer, "classes")))

    assert "mine" in viewer.layers
    (labels,) = of_probe(viewer, "classes")
    np.testing.assert_array_equal(np.asarray(labels.data), before)


def test_a_saved_model_gives_the_map_that_is_seen(
    qtbot: Any, viewer: Any, slide_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = show(viewer, slide_store)
    assert not panel.files.save_model.isEnabled()
    draw_two_classes(qtbot, viewer, panel)
    wait_for_map(qtbot, panel, lambda: bool(of_probe(viewer, "classes")))
    (labels,) = of_probe(viewer, "classes")
    path, hidden = tmp_path / "probe.safetensors", tmp_path / "hidden.safetensors"
    # The model is not where the run found it: the panel asks.
    model = slide_store.with_name("tiny.safetensors").rename(hidden)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(model), ""))
    click(qtbot, panel.files.save_model)
    qtbot.waitUntil(path.exists, timeout=WAIT_MS)
    hidden.rename(slide_store.with_name("tiny.safetensors"))

    again = tmp_path / "again.gigavim.zarr"
    config = RunConfig(model=str(path))
    run_image(str(slide_store.with_name("slide.svs")), again, config, Resources(device="cpu"))

    assert load_model(path).spec.classes == panel._fitted.probe.classes  # type: ignore[union-attr]
    seen = ResultStore.open(again).values("labels/classify/0")
    np.testing.assert_array_equal(seen, np.asarray(labels.data))


def test_a_scene_is_taught_in_its_crs(
    qtbot: Any, viewer: Any, scene_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = show(viewer, scene_store)
    world = panel._results.world  # type: ignore[union-attr]
    assert panel.pen.suffix() == " m"
    click(qtbot, panel.tools["Stroke"])
    drag(viewer, [(60, 40), (200, 120)], world)
    panel.classes.setCurrentCell(1, 0)
    click(qtbot, panel.tools["Lasso"])
    drag(viewer, [(40, 200), (40, 300), (200, 300), (200, 200)], world)
    wait_for_map(qtbot, panel, lambda: bool(of_probe(viewer, "classes")))

    (labels,) = of_probe(viewer, "classes")
    found = np.asarray(labels.data)
    assert (found[4:-4, 4:18] == 1).mean() > 0.9
    assert (found[4:-4, 22:-4] == 2).mean() > 0.9
    # The map lies on the scene: half a kilometre north of its south-west corner is water.
    assert labels.get_value((-(5_300_000 - 2000), 600_000 + 500), world=True) == 1

    path = tmp_path / "scene.geojson"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    click(qtbot, panel.files.save)
    qtbot.waitUntil(path.exists, timeout=WAIT_MS)
    water, _ = read_annotations(path, open_source(scene_store.with_name("scene.tif")))[0]
    np.testing.assert_allclose(water.geometry.coords[0], (40, 60), atol=4)


def test_nothing_open_and_several_stores_are_said_in_words(
    qtbot: Any, viewer: Any, slide_store: Path, tmp_path: Path
) -> None:
    panel = TeachPanel(viewer)
    viewer.window.add_dock_widget(panel, name="Annotate and teach")
    assert panel.message.text().startswith("Open the .gigavim.zarr")
    assert not panel.fit.isEnabled()
    other = shutil.copytree(slide_store, tmp_path / "other.gigavim.zarr")
    for store in (slide_store, other):
        (data,) = result_layers(open_results(store))[-1:]
        viewer.add_layer(Layer.create(*data))
    viewer.layers.selection.active = None
    assert "there are several" in panel.message.text()
    viewer.layers.selection.active = viewer.layers[0]
    assert "slide" in panel.message.text()
    assert panel.tools["Stroke"].isEnabled()
