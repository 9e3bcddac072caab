"""What is said of runs: complete ones, ones that go on, and ones that stopped."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest
import small_runs

from gigavim.plugins.napari.about_run import about, read_errors
from gigavim.plugins.napari.results import open_results
from gigavim.store import ResultStore, RunProgress
from gigavim.store.running import write_progress


def test_a_complete_run_is_described(tmp_path_factory: pytest.TempPathFactory) -> None:
    summary = small_runs.classified_scene(tmp_path_factory.getbasetemp())
    assert summary.store is not None
    words = about(open_results(summary.store))
    assert words["Status"] == "complete"
    assert words["Image"] == "meadow.tif, 320 × 256 px"
    assert words["Model"] == f"{summary.model}, {summary.mode}"
    assert words["Spacing"] == "10 metre per pixel"
    assert words["Patches"] == "1,008 of 8 px"
    assert words["Errors"] == "none"


def test_what_could_not_be_read_is_listed_where_it_is(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    summary = small_runs.clustered_slide(tmp_path_factory.getbasetemp())
    assert summary.store is not None
    results = open_results(summary.store)
    words = about(results)
    assert words["Errors"] == "1 part could not be read"
    assert words["Patches"].endswith(f"{summary.unreadable_tokens} of them unreadable")
    (error,) = read_errors(results)
    # The third file tile of the third row: 256 pixels of 0.5 µm to a side.
    assert (error.y, error.x) == (2.5 * 128, 2.5 * 128)
    assert (error.height, error.width) == (128, 128)
    assert error.words.startswith("x 512, y 512: ")


def test_an_image_that_has_moved_is_said_to_have(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    summary = small_runs.classified_scene(tmp_path_factory.getbasetemp())
    assert summary.store is not None
    moved = tmp_path / "moved.tif"
    shutil.copy(summary.image, moved)
    results = open_results(summary.store, moved)
    moved.unlink()
    assert "no longer at" in about(results)["Image"]


def test_a_run_that_goes_on_or_has_stopped_is_no_result(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    summary = small_runs.classified_scene(tmp_path_factory.getbasetemp())
    assert summary.store is not None
    marks = {
        name: value
        for name, value in open_results(summary.store).store.attributes.items()
        if name not in ("status", "writer", "seconds", "stages", "peak_memory_bytes")
    }
    path = tmp_path / "unfinished.gigavim.zarr"
    with ResultStore.create(path, marks):
        write_progress(path, RunProgress("mixing", 30, 120, 1.0))
        running = about(open_results(path))
        where = f"process {os.getpid()} on {socket.gethostname()}"
        assert running["Status"] == f"running: mixing, 25% ({where})"
        assert "took" not in running["Time"]
    stopped = about(open_results(path))
    assert stopped["Status"].startswith("not complete: ")
    write_progress(path, RunProgress("mixing", 30, 120, 1.0, "the disk is full"))
    assert "the disk is full" in about(open_results(path))["Status"]
