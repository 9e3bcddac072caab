"""`gigavim view` opens a window on images and results, or says in one line why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gigavim.cli import app
from gigavim.errors import SourceError
from gigavim.plugins.napari.window import open_viewer
from images import tissue, write_scene, write_slide
from stores import write_store


def test_results_that_have_moved_open_with_their_image_and_dock(qtbot: Any, tmp_path: Path) -> None:
    image = write_slide(tmp_path / "slide.svs", tissue(96, 128))
    labels = np.ones((3, 4), np.uint8)
    store = write_store(tmp_path / "slide.gigavim.zarr", image, labels, patch=32)
    moved = image.rename(tmp_path / "moved.svs")
    viewer = open_viewer([str(store)], source=str(moved))
    try:
        assert viewer.layers[0].name == "moved.svs"
        assert "Results (gigavim)" in viewer.window.dock_widgets
    finally:
        viewer.close()


def test_no_window_opens_on_what_cannot_be_read(qtbot: Any, tmp_path: Path) -> None:
    scene = str(write_scene(tmp_path / "scene.tif"))
    with pytest.raises(SourceError, match="there is no such file"):
        open_viewer([scene, str(tmp_path / "nothing.svs")])
    with pytest.raises(SourceError, match="named as the image of results"):
        open_viewer([scene], source=scene)


def test_where_napari_is_missing_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["gigavim.cli.view"], "find_spec", lambda name: None)
    told = CliRunner().invoke(app, ["view", "slide.svs"])
    assert told.exit_code == 1
    assert "pip install 'gigavim[napari]'" in told.output


@pytest.mark.skipif(sys.platform != "linux", reason="screens are always there")
def test_where_there_is_no_screen_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in sys.modules["gigavim.cli.view"].SCREENS:
        monkeypatch.delenv(name, raising=False)
    told = CliRunner().invoke(app, ["view", "slide.svs"])
    assert told.exit_code == 1
    assert "no screen" in told.output


def test_a_run_imports_nothing_of_the_viewer() -> None:
    code = (
        "import sys, gigavim.cli, gigavim.pipelines.run; "
        "print([m for m in sys.modules if m.partition('.')[0] in ('napari', 'qtpy', 'PySide6')])"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert done.stdout.strip() == b"[]"
