from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

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


def copies_of_a_slide(folder: Path, number: int) -> Path:
    folder.mkdir()
    images.write_slide(folder / "0000.svs", images.tissue(64, 64))
    for copy in range(1, number):
        (folder / f"{copy:04}.svs").hardlink_to(folder / "0000.svs")
    return folder


TINY = {"read_all": True, "heads": ("features",)}
"""What takes least time of a run."""

ONE_BY_ONE = """
import json, sys
from pathlib import Path
import psutil
from gigavim.config import Resources, RunConfig
from gigavim.memory import keep_freed_memory
from gigavim.pipelines.run import run_image
folder, model, tiny = sys.argv[1:]
config = RunConfig(model=model, **json.loads(tiny))
keep_freed_memory()
for number, slide in enumerate(sorted(Path(folder).iterdir()), 1):
    store = Path(folder).with_name("out") / f"{slide.stem}.gigavim.zarr"
    run_image(str(slide), store, config, Resources(device="cpu", readers=1))
    if number % 40 == 0:
        print(psutil.Process().memory_info().rss, psutil.Process().num_fds())
"""


def test_an_image_more_takes_no_memory_and_no_handle(model: Path, tmp_path: Path) -> None:
    """As a worker maps them: what each leaves behind shows after a hundred."""
    slides = copies_of_a_slide(tmp_path / "slides", 120)
    command = [sys.executable, "-c", ONE_BY_ONE, str(slides), str(model), json.dumps(TINY)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    (memory, handles), *_, last = [map(int, line.split()) for line in said.stdout.splitlines()]
    memory_at_last, handles_at_last = last
    assert memory_at_last < memory + 20 * 2**20  # a pool of threads for each would take 40
    assert handles_at_last == handles


@pytest.mark.long
def test_a_thousand_images_take_no_more_memory_than_a_hundred(model: Path, tmp_path: Path) -> None:
    slides = copies_of_a_slide(tmp_path / "slides", 1000)
    output = tmp_path / "out"
    jobs = read_manifest([str(slides)], output, RunConfig(model=str(model), **TINY))
    figures: list[tuple[int, float, int]] = []
    done = 0

    def measure(image: Done, share: float) -> None:
        nonlocal done
        assert image.summary.status == "complete", image.summary.error
        done += 1
        if done in (100, 1000):
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            figures.append(
                (
                    len(processes),
                    sum(process.memory_info().rss for process in processes) / 2**20,
                    sum(process.num_fds() for process in processes),
                )
            )

    counts = run_batch(jobs, Batch(output, Where(workers=2), CPU), measure)
    assert counts == {"complete": 1000}
    early, late = figures
    print(f"processes, MiB, handles after 100: {early}, after 1000: {late}")
    assert late[0] == early[0]
    assert late[1] < early[1] + 100  # MiB
    assert late[2] < early[2] + 20
