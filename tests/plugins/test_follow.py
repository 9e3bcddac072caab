"""Layers fill while a run goes on that the shell has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gigavim.plugins.napari.follow import Follower, follow, words_of
from gigavim.store import ResultStore, RunProgress
from gigavim.store.running import Filling
from images import tissue, write_model, write_slide

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="holds processes by signals")

WAIT_MS = 120_000


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """Return a slide of six blocks at 0.5 µm/px."""
    return write_slide(tmp_path / "slide.svs", tissue(2048, 3072))


@contextmanager
def from_the_shell(slide: Path, store: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a run as a person does."""
    model = write_model(slide.with_name("rgb.safetensors"))
    command = [sys.executable, "-m", "gigavim", "run", str(slide), "-q"]
    command += ["--model", str(model), "-o", str(store)]
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        try:
            yield process
        finally:
            process.kill()


def held(process: subprocess.Popen[bytes], store: Path, ready: Callable[[], bool]) -> None:
    """Stop a run in the midst of what it does, once it is there."""
    while not ready():
        assert process.poll() is None
    process.send_signal(signal.SIGSTOP)
    assert not ResultStore.open(store).complete


def layers_of(viewer: Any, kind: str) -> dict[str, Any]:
    """Return our layers of a kind, by head."""
    ours = [(layer, layer.metadata.get("gigavim") or {}) for layer in viewer.layers]
    return {about["head"]: layer for layer, about in ours if about.get("kind") == kind}


def test_a_run_from_the_shell_fills_and_then_shows_its_final_map(
    viewer: Any, qtbot: Any, slide: Path, tmp_path: Path
) -> None:
    store, filling = tmp_path / "slide.gigavim.zarr", Filling(tmp_path / "slide.gigavim.zarr")
    with from_the_shell(slide, store) as process:
        held(process, store, lambda: filling.update())
        follower = follow(viewer, store)
        qtbot.waitUntil(lambda: "foreground" in layers_of(viewer, "running"), timeout=WAIT_MS)
        layer = layers_of(viewer, "running")["foreground"]
        part = int(np.count_nonzero(layer.data))
        assert part > 0
        assert "running: reading" in layer.name
        assert follow(viewer, store) is follower

        process.send_signal(signal.SIGCONT)
        grown = set[int]()

        def ended() -> bool:
            grown.add(int(np.count_nonzero(layer.data)))
            return not follower.watches

        qtbot.waitUntil(ended, timeout=WAIT_MS)
    results = ResultStore.open(store)
    assert results.complete
    assert max(grown) > part
    assert max(grown) == np.count_nonzero(results.values("labels/foreground/0"))
    assert not layers_of(viewer, "running")
    final = layers_of(viewer, "classes")["clusters"]
    np.testing.assert_array_equal(final.data, results.values("labels/clusters/0"))
    # What has filled lay where the map lies.
    np.testing.assert_allclose(layer.data_to_world((3, 5)), final.data_to_world((3, 5)), atol=1e-9)


def test_a_run_that_dies_is_said_to_be_unfinished(
    viewer: Any, qtbot: Any, slide: Path, tmp_path: Path
) -> None:
    store, filling = tmp_path / "slide.gigavim.zarr", Filling(tmp_path / "slide.gigavim.zarr")
    with from_the_shell(slide, store) as process:
        held(process, store, lambda: filling.update())
        follower = follow(viewer, store)
        qtbot.waitUntil(lambda: bool(layers_of(viewer, "running")), timeout=WAIT_MS)
        process.kill()
        qtbot.waitUntil(lambda: not follower.watches, timeout=WAIT_MS)
    assert follower.why == ("its process is gone; the same run again continues where it stopped")
    assert layers_of(viewer, "running")["foreground"].name.startswith("foreground, unfinished")
    assert not layers_of(viewer, "classes")


def test_nothing_is_followed_whose_layer_was_removed(
    viewer: Any, qtbot: Any, slide: Path, tmp_path: Path
) -> None:
    store, filling = tmp_path / "slide.gigavim.zarr", Filling(tmp_path / "slide.gigavim.zarr")
    with from_the_shell(slide, store) as process:
        held(process, store, lambda: filling.update())
        follower = follow(viewer, store)
        qtbot.waitUntil(lambda: bool(layers_of(viewer, "running")), timeout=WAIT_MS)
        viewer.layers.remove(layers_of(viewer, "running")["foreground"])
        assert not follower.watches


def test_what_is_no_store_is_said_and_not_followed(viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    follower = follow(viewer, tmp_path / "nothing.gigavim.zarr")
    assert isinstance(follower, Follower)
    qtbot.waitUntil(lambda: not follower.watches, timeout=WAIT_MS)
    assert "nothing.gigavim.zarr" in follower.why


def test_progress_is_said_in_words() -> None:
    assert words_of(RunProgress("mixing", 500, 1000, 7200.0)) == "mixing 50 %, 2 h 00 min left"
    assert words_of(RunProgress("reading", 0, 1000, 2.0)) == "reading 0 %"
    assert words_of(RunProgress("classifying", 0, 0, 2.0)) == "classifying"
