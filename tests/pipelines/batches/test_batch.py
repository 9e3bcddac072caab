from __future__ import annotations

import csv
import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import tifffile

import images
from gigavim.config import Resources, RunConfig
from gigavim.pipelines.batches.batch import Batch, forecast, run_batch
from gigavim.pipelines.batches.cluster import Where
from gigavim.pipelines.batches.ledger import LEDGER, TABLE
from gigavim.pipelines.batches.manifest import read_manifest
from gigavim.pipelines.batches.schedule import Done
from gigavim.pipelines.batches.staging import StagePlan
from gigavim.store import ResultStore

CPU = Resources(device="cpu", readers=1)


def rows_of(output: Path) -> dict[str, dict[str, str]]:
    with (output / TABLE).open(newline="", encoding="utf-8") as file:
        return {Path(row["image"]).stem: row for row in csv.DictReader(file)}


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / LEDGER).read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides of different sizes, one that is none, and one with a tile that cannot be read."""
    folder = tmp_path_factory.mktemp("slides")
    images.write_slide(folder / "large.svs", images.tissue(2048, 2048))
    images.write_slide(folder / "broken.svs", break_tile=14)
    images.write_slide(folder / "small.svs", images.tissue(512, 512, 1))
    (folder / "sub").mkdir()
    images.write_slide(folder / "sub/small.svs", images.tissue(512, 640, 2))
    (folder / "text.svs").write_text("no slide")
    return folder


def test_a_killed_worker_a_bad_file_and_a_damaged_store(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    jobs = read_manifest([str(folder)], output, RunConfig(model=str(model)))
    batch = Batch(output, Where(workers=2), CPU, stage=StagePlan(tmp_path / "stage"))
    killed = threading.Event()

    def kill_who_has_the_largest() -> None:
        state = output / "large.gigavim.zarr/state"
        while not list(state.glob("*.npz")):
            time.sleep(0.005)
        marks = ResultStore.open(state.parent).attributes
        os.kill(marks["writer"]["pid"], signal.SIGKILL)
        killed.set()

    killer = threading.Thread(target=kill_who_has_the_largest, daemon=True)
    killer.start()
    counts = run_batch(jobs, batch)
    assert killed.is_set()
    killer.join()
    assert counts == {"complete": 4, "failed": 1}
    rows = rows_of(output)
    assert (rows["large"]["status"], rows["large"]["attempts"]) == ("complete", "2")
    assert "is no image that can be read" in rows["text"]["error"]
    assert str(folder) in rows["text"]["error"]
    assert int(rows["broken"]["read_errors"]) > 0
    lines = lines_of(output)
    left = [line for line in lines if line["event"] == "left"]
    assert Counter(line["outcome"] for line in left) == {"complete": 4, "failed": 1, "lost": 1}
    begun = [Path(line["image"]).stem for line in lines if line["event"] == "begun"]
    assert begun[0] == "large"
    assert set(begun[:2]) == {"large", "broken"}
    # A result is of the image, wherever its pixels were read.
    store = ResultStore.open(output / "sub/small.gigavim.zarr")
    assert store.attributes["source"]["uri"] == str(folder / "sub/small.svs")
    assert not list((tmp_path / "stage").rglob("*.svs"))

    features = output / "small.gigavim.zarr/tokens/features/c"
    next(file for file in features.rglob("*") if file.is_file()).unlink()
    counts = run_batch(jobs, Batch(output, Where(workers=1), CPU, pages=True))
    assert counts == {"complete": 1, "skipped": 3, "failed": 1}
    assert ResultStore.open(output / "small.gigavim.zarr").values("tokens/features").any()
    assert "large.html" in (output / "index.html").read_text()
    assert len({line["batch"] for line in lines_of(output)}) == 2


def test_a_forecast_does_nothing_but_tell(folder: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    jobs = read_manifest([str(folder)], output, RunConfig(model=str(model)))
    rows = list(forecast(jobs, Batch(output, resources=CPU)))
    assert not output.exists()
    assert [Path(row.image).stem for row in rows] == [
        "large", "broken", "small", "small", "text",
    ]  # fmt: skip
    assert "is no image that can be read" in (rows[-1].error or "")
    large = rows[0]
    assert large.seconds > 0
    assert large.tokens * 32 * 2 < large.store_bytes < large.tokens * 32 * 4
    assert large.memory_bytes > 2**20


@pytest.mark.slow
def test_a_thousand_images_take_no_more_memory_than_a_hundred(model: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    images.write_slide(slides / "0000.svs", images.tissue(64, 64))
    content = (slides / "0000.svs").read_bytes()
    for number in range(1, 1000):
        (slides / f"{number:04}.svs").write_bytes(content)
    output = tmp_path / "out"
    config = RunConfig(model=str(model), read_all=True, heads=("features",))
    jobs = read_manifest([str(slides)], output, config)
    figures: list[tuple[int, int, int]] = []

    def measure(done: Done, share: float) -> None:
        assert done.summary.status == "complete", done.summary.error
        figures.append((0, 0, 0))
        if len(figures) in (100, 1000):
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            figures[-1] = (
                len(processes),
                sum(process.memory_info().rss for process in processes),
                sum(process.num_fds() for process in processes),
            )

    counts = run_batch(jobs, Batch(output, Where(workers=2), CPU), measure)
    assert counts == {"complete": 1000}
    early, late = figures[99], figures[999]
    print(f"processes, bytes, handles after 100: {early}, after 1000: {late}")
    assert late[0] == early[0]
    assert late[1] < early[1] + 100 * 2**20
    assert late[2] < early[2] + 20
    assert tifffile.imread(slides / "0999.svs").shape == (64, 64, 3)
