"""Times reading a tiled slide: ``python benchmarks/decode.py [SLIDE]``, one JSON line a result.

Four ways through level 0, which take turns, and the best round of each counts, so that what else
the machine does meets all of them; the rate per second of processor time does not feel it at all:

- bare: the bytes of each file tile, decoded and dropped: what the codec can do at most;
- gigavim: windows of one array each, as a run reads them, at the spacing of level 0;
- gigavim averaged: the same windows, averaged by area to twice the spacing;
- openslide: the same windows by ``read_region``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openslide
import tifffile

from gigavim.geometry import Window
from gigavim.sources import Plane, open_source
from gigavim.sources.file_source import PerThread
from gigavim.sources.tiff_source import ByteFile

SLIDE = Path(__file__).resolve().parents[2] / "shared/data/slides/CMU-1-Small-Region.svs"

Round = tuple[Callable[[Any], object], Sequence[Any]]
"""What to call, on each of what."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", nargs="?", type=Path, default=SLIDE)
    parser.add_argument("--side", type=int, default=4096, help="of a window, in pixels")
    parser.add_argument("--megapixels", type=float, default=50, help="in a round, at most")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()

    level_windows = windows(args.slide, args.side, args.megapixels)
    ways: dict[str, Callable[[], Round]] = {
        "bare": lambda: bare(args.slide, args.megapixels),
        "gigavim": lambda: gigavim(args.slide, level_windows, ratio=1),
        "gigavim averaged": lambda: gigavim(args.slide, level_windows, ratio=2),
        "openslide": lambda: by_openslide(args.slide, level_windows),
    }
    megapixels = sum(window.height * window.width for window in level_windows) / 1e6
    for threads in args.threads:
        rates, cpu_rates = best_rates(ways, megapixels, threads, args.rounds)
        for way, rate in rates.items():
            result = {
                "benchmark": "decode",
                "slide": args.slide.name,
                "way": way,
                "threads": threads,
                "megapixels_per_s": round(rate, 1),
                "times_openslide": round(rate / rates["openslide"], 2),
                "of_bare": round(rate / rates["bare"], 2),
                "megapixels_per_cpu_s": round(cpu_rates[way], 1),
                "cpu_times_openslide": round(cpu_rates[way] / cpu_rates["openslide"], 2),
            }
            print(json.dumps(result), flush=True)


def bare(path: Path, megapixels: float) -> Round:
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        decode, tables = page.decode, page.jpegtables
    files = PerThread(lambda: ByteFile(str(path)))

    def read(index: int) -> None:
        data = files.get().read(page.dataoffsets[index], page.databytecounts[index])
        decode(data, index, jpegtables=tables) if tables else decode(data, index)

    # As many as the windows have pixels; padding beyond the image is decoded and does not count.
    share = min(1.0, megapixels * 1e6 / (page.imagelength * page.imagewidth))
    return read, range(max(1, round(share * len(page.dataoffsets))))


def gigavim(path: Path, level_windows: Sequence[Window], ratio: int) -> Round:
    plane = Plane(open_source(path), 0, ratio, ratio)
    targets = [
        Window(w.y // ratio, w.x // ratio, w.height // ratio, w.width // ratio)
        for w in level_windows
    ]
    return plane.read, targets


def by_openslide(path: Path, level_windows: Sequence[Window]) -> Round:
    slides = PerThread(lambda: openslide.OpenSlide(path))

    def read(window: Window) -> None:
        slides.get().read_region((window.x, window.y), 0, (window.width, window.height))

    return read, level_windows


def windows(path: Path, side: int, megapixels: float) -> list[Window]:
    """Cut level 0 in windows of one size, as few as have so many pixels."""
    level = open_source(path).levels[0]
    rows, columns = -(-level.height // side), -(-level.width // side)
    height, width = level.height // rows, level.width // columns
    count = max(1, round(megapixels * 1e6 / (height * width)))
    corners = itertools.product(range(rows), range(columns))
    return [
        Window(row * height, column * width, height, width)
        for row, column in itertools.islice(corners, count)
    ]


def best_rates(
    ways: dict[str, Callable[[], Round]], megapixels: float, threads: int, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Megapixels per second, and per second of processor time, in the best round of each way.

    Each thread has as much to read as one alone. Files are opened anew for each round, or OpenSlide
    would answer from its cache.
    """
    rates, cpu_rates = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for way, prepare in ways.items():
            work, parts = prepare()
            with ThreadPoolExecutor(threads) as pool:
                start, cpu_start = time.perf_counter(), time.process_time()
                # Dropped one by one, as a run does.
                for _ in pool.map(work, [*parts] * threads):
                    pass
                cpu_s, seconds = time.process_time() - cpu_start, time.perf_counter() - start
            rates[way] = max(rates[way], threads * megapixels / seconds)
            cpu_rates[way] = max(cpu_rates[way], threads * megapixels / cpu_s)
    return rates, cpu_rates


if __name__ == "__main__":
    main()
