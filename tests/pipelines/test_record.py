"""Others follow a run by its store while it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from gigavim import patches
from gigavim.config import Resources, RunConfig
from gigavim.errors import GigavimError
from gigavim.pipelines.record import Recorded
from gigavim.pipelines.report import Silent
from gigavim.pipelines.run import run_image
from gigavim.store import ResultStore
from gigavim.store.running import Filling, is_written, read_progress
from images import TABLE, write_classifier, write_scene

CPU = Resources(device="cpu", readers=1)


class Watches(Silent):
    """Progress that looks at the store after each block, as another process would."""

    def __init__(self, look: Callable[[], None]) -> None:
        self.look = look

    def advance(self, tokens: int, megapixels: float = 0.0) -> None:
        self.look()


@pytest.fixture
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read 64 pixels to a side at once: 20 blocks of the scene."""
    monkeypatch.setattr(patches, "TARGET_SIDE", 64)


@pytest.mark.usefixtures("many_blocks")
@pytest.mark.parametrize(("mode", "name"), [("tiles", "classify"), ("whole", "foreground")])
def test_what_is_known_of_each_block_shows_and_is_final(
    tmp_path: Path, mode: Any, name: str
) -> None:
    scene, model = write_scene(tmp_path / "s.tif"), write_classifier(tmp_path / "m.safetensors")
    store = tmp_path / "s.gigavim.zarr"
    filling, seen = Filling(store), list[NDArray[np.uint8]]()

    def look() -> None:
        filling.update()
        (shown,) = filling.maps.values()
        assert shown.name == name
        seen.append(shown.labels.copy())

    config = RunConfig(model=str(model), mode=mode)
    run_image(str(scene), store, config, CPU, progress=Watches(look))
    final = ResultStore.open(store).values(f"labels/{name}/0")
    assert 0 < np.count_nonzero(seen[0]) < np.count_nonzero(seen[8]) < np.count_nonzero(final)
    for labels in seen:
        np.testing.assert_array_equal(labels[labels > 0], final[labels > 0])
    np.testing.assert_array_equal(seen[-1], final)
    (shown,) = filling.maps.values()
    assert shown.names == (TABLE.names if mode == "tiles" else ("foreground",))
    assert (shown.cell, shown.corner) == ((8, 8), (0, 0))


@pytest.mark.usefixtures("many_blocks")
def test_a_resumed_run_shows_what_was_read_before(
    scene: Path, scene_model: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s.gigavim.zarr"
    seen = list[int]()

    def look() -> None:
        filling = Filling(store)
        filling.update()
        seen.append(np.count_nonzero(filling.maps["foreground"].labels))
        if len(seen) == 5:
            raise KeyboardInterrupt

    config = RunConfig(model=str(scene_model))
    with pytest.raises(KeyboardInterrupt):
        run_image(str(scene), store, config, CPU, progress=Watches(look))
    assert not ResultStore.open(store).complete
    run_image(str(scene), store, config, CPU, progress=Watches(look))
    assert seen[5] >= seen[4] > seen[0]


def test_the_record_says_how_far_the_run_is_and_goes_with_it(
    scene: Path, scene_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gigavim.pipelines.record.EVERY_S", 0.0)
    store = tmp_path / "s.gigavim.zarr"
    seen = list[tuple[str, float]]()

    def look() -> None:
        progress = read_progress(store)
        assert progress is not None
        assert progress.stopped is None
        assert is_written(store, ResultStore.open(store).attributes["writer"])
        seen.append((progress.stage, progress.done / progress.total))

    config = RunConfig(model=str(scene_model))
    run_image(str(scene), store, config, CPU, progress=Watches(look))
    assert [stage for stage, share in seen if share == 1] == ["reading", "mixing"]
    assert seen == sorted(seen, key=lambda item: (item[0] != "reading", item[1]))
    assert read_progress(store) is None
    assert not is_written(store, ResultStore.open(store).attributes["writer"])


def test_the_record_says_why_a_run_stopped(scene: Path, scene_model: Path, tmp_path: Path) -> None:
    store, config = tmp_path / "s.gigavim.zarr", RunConfig(model=str(scene_model))

    def fail() -> None:
        raise GigavimError("the disk is on fire; put it out")

    with pytest.raises(GigavimError, match="on fire"):
        run_image(str(scene), store, config, CPU, progress=Watches(fail))
    progress = read_progress(store)
    assert progress is not None
    assert progress.stopped == "the disk is on fire; put it out"
    assert ResultStore.open(store).attributes["status"] == "running"
    assert not is_written(store, ResultStore.open(store).attributes["writer"])


def test_a_record_costs_no_more_than_two_a_second(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    recorded = Recorded(Silent(), tmp_path)
    recorded.start("reading", 10)
    recorded.advance(1)
    progress = read_progress(tmp_path)
    assert progress is not None
    assert progress.done == 0


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_ended_from_outside_is_known_to_be_over_and_continues_to_the_same_bits(
    slide: Path, tmp_path: Path, how: signal.Signals
) -> None:
    store, unbroken = tmp_path / "broken.gigavim.zarr", tmp_path / "unbroken.gigavim.zarr"
    command = [sys.executable, "-m", "gigavim", "run", str(slide), "-q", "-o", str(store)]
    command += ["--model", "slide-mini"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        while read_progress(store) is None:
            assert process.poll() is None
            time.sleep(0.05)
        writer = ResultStore.open(store).attributes["writer"]
        assert is_written(store, writer)
        process.send_signal(how)
        # Dead, and not yet asked for its end.
        while is_written(store, writer):
            time.sleep(0.05)
        _, errors = process.communicate(timeout=60)
    if how == signal.SIGTERM:
        assert b"interrupted; the same command continues" in errors
        assert not store.with_name(f"{store.name}.lock").exists()
    assert not ResultStore.open(store).complete
    config = RunConfig(model="slide-mini")
    assert run_image(str(slide), store, config, CPU).status == "complete"
    run_image(str(slide), unbroken, config, CPU)
    first, second = zarr.open_group(store, mode="r"), zarr.open_group(unbroken, mode="r")
    for name in ("tokens/features", "image/vector", "labels/clusters/0"):
        np.testing.assert_array_equal(first[name][...], second[name][...])
