"""What napari's readers make of what is dropped on a window, good and bad."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari.settings import get_settings
from napari.utils.notifications import Notification, notification_manager
from npe2 import PluginManifest
from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import QApplication

import gigavim.plugins.napari as plugin
from gigavim.plugins.napari.reader import get_reader
from gigavim.plugins.napari.window import show_image
from images import ORIGIN, tissue, write_scene, write_slide
from stores import write_store

LABELS = np.array([[1, 2, 0, 3], [0, 3, 3, 1], [2, 0, 0, 1]], np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store of a slide beside it."""
    image = write_slide(tmp_path / "slide.svs", tissue(96, 128))
    return write_store(tmp_path / "slide.gigavim.zarr", image, LABELS, patch=32)


@pytest.fixture
def said() -> Iterator[list[Notification]]:
    """Return the notifications of a test."""
    heard: list[Notification] = []
    notification_manager.notification_ready.connect(heard.append)
    yield heard
    notification_manager.notification_ready.disconnect(heard.append)


def kinds(viewer: Any) -> list[str]:
    return [layer.metadata["gigavim"]["kind"] for layer in viewer.layers]


def test_the_manifest_is_valid_and_names_what_is_there() -> None:
    manifest = PluginManifest.from_file(Path(plugin.__file__).with_name("napari.yaml"))
    manifest.validate_imports()
    commands = manifest.contributions.commands or []
    assert len(commands) == 7
    docks = {widget.display_name for widget in manifest.contributions.widgets or []}
    assert docks == {"Results", "Ask a patch", "Run here", "Annotate and teach"}


def test_the_plugin_is_found_once_installed() -> None:
    from npe2 import PluginManager

    manager = PluginManager()
    manager.discover()
    assert "gigavim" in manager


def test_results_are_shown_over_their_image(viewer: Any, store: Path) -> None:
    viewer.open(str(store), plugin="gigavim")
    assert kinds(viewer) == ["image", "foreground", *["probabilities"] * 3, "classes"]
    classes = viewer.layers[-1]
    assert classes.visible
    assert [layer.visible for layer in viewer.layers[1:-1]] == [False] * 4
    assert {str(unit) for unit in classes.units} == {"micrometer"}
    assert viewer.canvas.overlays.scale_bar.visible
    # The status bar says the class.
    assert "blue" in classes.get_status((9, 40), world=True)["value"] + str(
        classes.get_status((9, 60), world=True)
    )


def test_a_scene_is_shown_in_colours_over_its_bands(viewer: Any, tmp_path: Path) -> None:
    viewer.open(str(write_scene(tmp_path / "scene.tif")), plugin="gigavim")
    *bands, colours = viewer.layers
    assert [layer.visible for layer in bands] == [False] * 4
    assert colours.rgb
    assert {str(unit) for unit in colours.units} == {"meter"}
    x, y = ORIGIN
    assert colours.extent.world[0] == pytest.approx((-y + 5, x + 5))


def test_an_unfinished_run_is_shown_as_far_as_it_is_and_said_to_be(
    viewer: Any, tmp_path: Path, said: list[Notification], qtbot: Any
) -> None:
    image = write_slide(tmp_path / "slide.svs", tissue(96, 128))
    path = tmp_path / "slide.gigavim.zarr"
    store = write_store(path, image, LABELS, patch=32, finished=False)
    viewer.open(str(store), plugin="gigavim")
    assert kinds(viewer)[0] == "image"
    qtbot.waitUntil(lambda: any("unfinished" in n.message for n in said), timeout=60_000)
    assert "complete" not in str(viewer.layers)


def test_results_of_an_image_that_has_moved_are_shown_and_it_is_asked_for(
    viewer: Any, store: Path, said: list[Notification]
) -> None:
    image = store.with_name("slide.svs")
    moved = image.rename(image.with_name("elsewhere.svs"))
    viewer.open(str(store), plugin="gigavim")
    assert "image" not in kinds(viewer)
    (question,) = [n for n in said if "--source IMAGE" in n.message]
    assert question.actions[0][0] == "Find the image …"

    from gigavim.plugins.napari.results import open_results, results_of

    other = write_slide(store.with_name("other.svs"), tissue(96, 128, seed=1))
    show_image(viewer, open_results(store), str(other))
    assert "is not the image" in said[-1].message
    assert "image" not in kinds(viewer)
    show_image(viewer, open_results(store), str(moved))
    assert kinds(viewer)[0] == "image"
    found = results_of(viewer.layers[-1])
    assert found is not None
    assert found.source == str(moved)


def test_a_file_that_nothing_reads_is_said_to_be_so(
    viewer: Any, tmp_path: Path, said: list[Notification]
) -> None:
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"II*\0 and nothing more")
    assert viewer.open(str(broken), plugin="gigavim") == []
    assert str(broken) in said[-1].message
    assert "\n" not in said[-1].message
    viewer.open(str(write_slide(tmp_path / "slide.svs")), plugin="gigavim")
    assert kinds(viewer) == ["image"]


def test_results_of_a_newer_version_are_refused_and_nothing_is_shown(
    viewer: Any, store: Path, said: list[Notification]
) -> None:
    file = store / "zarr.json"
    marks = json.loads(file.read_text())
    marks["attributes"]["gigavim"]["version"] = "17.2.0"
    file.write_text(json.dumps(marks))
    assert viewer.open(str(store), plugin="gigavim") == []
    assert "pip install -U gigavim" in said[-1].message


def test_a_tile_that_cannot_be_decoded_is_transparent_and_said(
    viewer: Any, tmp_path: Path, said: list[Notification], qtbot: Any
) -> None:
    slide = write_slide(tmp_path / "slide.svs", tissue(512, 1536), break_tile=0)
    viewer.open(str(slide), plugin="gigavim")
    qtbot.waitUntil(lambda: any("cannot be decoded" in n.message for n in said), timeout=60_000)
    assert (np.asarray(viewer.layers[0].data[0])[:256, :256, 3] == 0).all()


def test_what_others_read_better_is_left_to_them(tmp_path: Path) -> None:
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, np.zeros((5, 64, 64), np.uint8), imagej=True)
    assert get_reader(str(stack)) is None
    assert get_reader(str(tmp_path)) is None
    assert get_reader([str(stack), str(stack)]) is None
    assert get_reader(str(write_scene(tmp_path / "scene.tif"))) is not None


def test_samples_are_made_once_and_shown(
    viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qtbot: Any
) -> None:
    from gigavim.plugins.napari import samples

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(samples, "SCENE_SHAPE", (400, 500))
    (waiting,) = viewer.open_sample("gigavim", "scene")
    qtbot.waitUntil(lambda: waiting not in viewer.layers, timeout=120_000)
    qtbot.waitUntil(lambda: "image" in kinds(viewer), timeout=120_000)
    viewer.layers.clear()
    viewer.open_sample("gigavim", "scene")
    assert "image" in kinds(viewer)


@pytest.fixture
def preferred() -> Iterator[None]:
    """As if napari had asked, once for each kind of file, and the answer was to be kept."""
    settings = get_settings().plugins
    before = settings.extension2reader
    settings.extension2reader = {"*.svs": "gigavim", f"*.zarr{os.sep}": "gigavim"}
    yield
    settings.extension2reader = before


def test_what_is_dropped_on_the_window_opens(viewer: Any, store: Path, preferred: None) -> None:
    window = viewer.window._qt_viewer
    for path in (store.with_name("slide.svs"), store):
        files = QMimeData()
        files.setUrls([QUrl.fromLocalFile(str(path))])
        copy, left = Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton
        middle, none = window.rect().center(), Qt.KeyboardModifier.NoModifier
        QApplication.sendEvent(window, QDragEnterEvent(middle, copy, files, left, none))
        QApplication.sendEvent(window, QDropEvent(QPointF(middle), copy, files, left, none))
    assert kinds(viewer)[0] == "image"
    assert "classes" in kinds(viewer)
