"""Time of a stack against its dates, in both orders, and of a run against its bands.

``python benchmarks/dates.py`` prints one JSON line a case: the best of three in wall-clock and
processor seconds, after one that does not count, and what each date or band adds to that. Scenes
are noise, 768 px to a side; the model is `scene-mini` for dates, and an equal one with random
weights for bands.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import rasterio
import torch

from gigavim.checkpoint import ModelSpec, load_model, save_model
from gigavim.config import Resources, RunConfig
from gigavim.encoder import VisionMamba
from gigavim.pipelines.run import run_image
from gigavim.pipelines.stack.run import run_stack

DATES = (1, 2, 4, 8, 16)
BANDS = (1, 2, 4, 8, 13)
SIDE = 768
ROUNDS = 3
CPU = Resources(device="cpu", readers=1)


def write(path: Path, bands: int, seed: int) -> str:
    """Write a tiled scene of noise, of which no block compresses."""
    random = np.random.default_rng(seed)
    with rasterio.open(
        path, "w", driver="GTiff", height=SIDE, width=SIDE, count=bands, dtype="uint16",
        tiled=True, compress="deflate", crs="EPSG:32632",
        transform=rasterio.Affine(10, 0, 6e5, 0, -10, 5.3e6),
    ) as raster:  # fmt: skip
        raster.write(random.integers(1, 10_000, (bands, SIDE, SIDE), np.uint16))
        raster.descriptions = [f"own {band}" for band in range(1, bands + 1)]
    return str(path)


def random_model(path: Path, bands: int) -> str:
    """Write a model as scene-mini, but for its bands and what it learnt."""
    like = load_model("scene-mini").spec
    torch.manual_seed(0)
    config = dataclasses.replace(like.architecture, bands=bands)
    names = tuple(f"own {band}" for band in range(1, bands + 1))
    spec = ModelSpec(config, scale=1.0, normalisation="image", bands=names, tile=like.tile)
    save_model(path, VisionMamba(config), spec)
    return str(path)


def best_of(call: Callable[[int], None]) -> tuple[float, float]:
    """Return the least wall-clock and processor seconds."""
    call(-1)
    wall, busy = [], []
    for number in range(ROUNDS):
        started, before = time.perf_counter(), time.process_time()
        call(number)
        wall.append(time.perf_counter() - started)
        busy.append(time.process_time() - before)
    return min(wall), min(busy)


def report(what: str, counts: tuple[int, ...], times: list[tuple[float, float]]) -> None:
    first = times[0][1]
    for count, (wall, busy) in zip(counts, times, strict=True):
        each = (busy - first) / (count - counts[0]) if count > counts[0] else None
        print(json.dumps({"what": what, "count": count, "wall_s": wall, "cpu_s": busy,
                          "cpu_s_for_each_more": each}), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dates", type=int, default=DATES[-1], help="at most")
    most = parser.parse_args().dates
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes = [
            write(folder / f"2024{1 + n // 28:02}{1 + n % 28:02}.tif", 6, n) for n in range(most)
        ]
        bands = ["blue=1", "green=2", "red=3", "nir=4", "swir1=5", "swir2=6"]
        config = RunConfig(model="scene-mini", bands=tuple(bands), heads=("features",))
        counts = tuple(count for count in DATES if count <= most)
        for order in ("date", "place"):
            times = []
            for count in counts:

                def stack(number: int, count: int = count, order: str = order) -> None:
                    path = folder / f"{order}-{count}-{number}.gigavim.zarr"
                    run_stack(scenes[:count], path, config, CPU, order=order)

                times.append(best_of(stack))
            report(f"dates, {order} first", counts, times)
        times = []
        for count in BANDS:
            scene = write(folder / f"bands-{count}.tif", count, count)
            model = random_model(folder / f"{count}.safetensors", count)

            def run(number: int, scene: str = scene, model: str = model) -> None:
                path = folder / f"{Path(scene).stem}-{number}.gigavim.zarr"
                run_image(scene, path, RunConfig(model=model, heads=("features",)), CPU)

            times.append(best_of(run))
        report("bands", BANDS, times)


if __name__ == "__main__":
    main()
