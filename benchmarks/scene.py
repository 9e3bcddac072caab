"""A scene of full size: ``gigavim sample scene --full FULL``, then one JSON line a result.

    python benchmarks/scene.py reading FULL         # beside rasterio's bare reading of the windows
    python benchmarks/scene.py run FULL             # a whole run under --max-memory 3GiB

``reading``: the contestants take turns over the same windows in one thread, and the best round of
each counts: by the clock, and by processor time, which does not feel what else the machine does.
``run`` takes ``--model``, and ``--side`` to read a square of so many pixels from the middle. Time
against bands and dates is measured by ``dates.py``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from gigavim.geometry import Window
from gigavim.memory import keep_freed_memory
from gigavim.sources import open_source

SIDE = 1024
"""Of the windows, in pixels, as a run reads them."""
BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("reading", "run"))
    parser.add_argument("scene", type=Path)
    parser.add_argument("--side", type=int, default=None)
    parser.add_argument("--model", default="landcover")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=12)
    args = parser.parse_args()
    keep_freed_memory()  # as `gigavim` does
    {"reading": reading, "run": run}[args.what](args)


def reading(args: argparse.Namespace) -> None:
    """Compare reading alone, of six bands and of all."""
    with rasterio.open(args.scene) as image:
        names, size = image.descriptions, image.shape
    windows = _middle(size, args.windows)
    for chosen in (BANDS, names):
        numbers = [names.index(name) + 1 for name in chosen]
        source = open_source(str(args.scene), bands=chosen)

        def bare(numbers: Sequence[int] = numbers) -> None:
            with rasterio.open(args.scene) as image:
                for w in windows:
                    image.read(numbers, window=((w.y, w.y + w.height), (w.x, w.x + w.width)))

        def masked(numbers: Sequence[int] = numbers) -> None:
            with rasterio.open(args.scene) as image:
                for w in windows:
                    window = (w.y, w.y + w.height), (w.x, w.x + w.width)
                    image.read(numbers, window=window, masked=True)

        def gigavim(source: Any = source) -> None:
            # As the others do, which then have nothing in GDAL's cache either.
            source.datasets.renew()
            for w in windows:
                source.read_level(0, w)

        ways = {"rasterio": bare, "rasterio with masks": masked, "gigavim": gigavim}
        best = _take_turns(ways, args.rounds)
        megapixels = sum(w.height * w.width for w in windows) / 1e6
        for way, (clock, busy) in best.items():
            about = {"benchmark": "scene reading", "bands": len(chosen), "way": way}
            figures = {
                "megapixels_per_s": round(megapixels / clock, 1),
                "of_rasterio": round(best["rasterio"][0] / clock, 3),
                "cpu_of_rasterio": round(best["rasterio"][1] / busy, 3),
            }
            print(json.dumps(about | figures), flush=True)


def run(args: argparse.Namespace) -> None:
    """Run the command as a user does."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gigavim", "run", str(args.scene), "-o", folder, "--json"]
        options = ["--max-memory", "3GiB", "--model", args.model]
        if args.side:
            options += ["--bounds", ",".join(map(str, _square(args.scene, args.side)))]
        started = time.perf_counter()
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - started
    (summary,) = json.loads(done.stdout)["images"]
    stages = summary["stages"]
    figures = {
        "benchmark": "scene run",
        "megapixels": round(summary["megapixels"], 1),
        "tokens": summary["tokens"],
        "seconds": round(seconds, 1),
        "peak_mib": round(summary["peak_memory_bytes"] / 2**20),
        "stages_s": {name: round(s, 1) for name, s in stages.items()},
    }
    print(json.dumps(figures))


def _square(scene: Path, side: int) -> tuple[float, float, float, float]:
    """Return the bounds of so many pixels in the middle of a scene."""
    with rasterio.open(scene) as image:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        west, north = image.transform @ (left, top)
        east, south = image.transform @ (left + side, top + side)
    return west, south, east, north


def _middle(size: tuple[int, int], count: int) -> list[Window]:
    """Return windows side by side, in the middle of a scene, where it has pixels."""
    height, width = size
    y, x = height // 2 // SIDE * SIDE, max(0, (width - count * SIDE) // 2 // SIDE * SIDE)
    return [
        Window(y, x + n * SIDE, SIDE, SIDE) for n in range(count) if x + (n + 1) * SIDE <= width
    ]


def _take_turns(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return seconds, and seconds of processor time, of the best round of each way."""
    best = dict.fromkeys(ways, (np.inf, np.inf))
    for _ in range(rounds):
        for way, work in ways.items():
            started, busy = time.perf_counter(), time.process_time()
            work()
            clock, busy = time.perf_counter() - started, time.process_time() - busy
            best[way] = min(best[way][0], clock), min(best[way][1], busy)
    return best


if __name__ == "__main__":
    main()
