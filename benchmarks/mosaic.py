"""Whole images against tiles, on mosaics of held-out tiles whose layout is the ground truth.

    python benchmarks/mosaic.py DATA MODEL FOLDER            on validation tiles, for development
    python benchmarks/mosaic.py DATA MODEL FOLDER --test     on test tiles, for the figure

DATA is what the model was trained on, as `gigavim train` takes it. Every tile of the split is in
one of the mosaics, at a random place, and each mosaic is read by `gigavim run`, as a user would, in
both modes: as it is, so that tiles mode, of patches that do not overlap, cuts it where the tiles
were joined, and with a quarter or half a tile cut from its top and left: no image does tiles mode
the favour of the first. Of patches that overlap a tile begins a little before the last one ends,
and the two grids drift apart. Prints one JSON line for each mode and cut: the share of pixels of
the right class, with a 95 % bootstrap interval over tiles.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from gigavim.checkpoint import load_model
from gigavim.pipelines.train.classifier import SPLIT
from gigavim.pipelines.train.split import split_by_group, split_of
from gigavim.pipelines.train.tiles import TileSet, read_tiles

CRS, ORIGIN = "EPSG:32632", (600_000.0, 5_300_000.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--test", action="store_true", help="the test split in place of val")
    parser.add_argument("--side", type=int, default=18, help="tiles to a side of a mosaic")
    parser.add_argument("--most", type=int, default=None, help="mosaics, all tiles by default")
    parser.add_argument("--modes", default="whole,tiles")
    parser.add_argument("--order", default="raster", help="of whole mode")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    spec = load_model(args.model).spec
    assert spec.classes is not None
    assert spec.spacing is not None
    tiles = read_tiles(args.data)
    beside = args.model.with_suffix(SPLIT)
    tiles = split_of(tiles, beside) if beside.is_file() else split_by_group(tiles)
    split = "test" if args.test else "val"
    labels = tiles.labels(spec.classes.names)
    rows = np.random.default_rng(0).permutation(tiles.rows(split))
    count = min(len(rows) // args.side**2, args.most or len(rows))
    side = tiles.pixels.shape[1]
    for cut in (0, side // 4, side // 2):
        for mode in args.modes.split(","):
            right = []
            for number in range(count):
                chosen = rows[number * args.side**2 : (number + 1) * args.side**2]
                path = args.folder / f"{split}-{number}-{cut}.tif"
                write(path, mosaic(tiles, chosen, args.side)[cut:, cut:], spec.spacing)
                found = mapped(path, args.model, mode, args.order, args.folder / mode)
                right += accuracies(found, labels[chosen], args.side, tiles.pixels.shape[1], cut)
            shares, weights = np.array(right).T
            value, low, high = interval(shares, weights)
            show = {
                "benchmark": "mosaic", "model": args.model.name, "split": split, "mode": mode,
                "order": args.order if mode == "whole" else None, "cut": cut,
                "tiles": len(shares), "accuracy": value, "low": low, "high": high,
            }  # fmt: skip
            print(json.dumps(show), flush=True)


def mosaic(tiles: TileSet, chosen: NDArray[np.int64], side: int) -> NDArray[Any]:
    """Put tiles in a square, row by row."""
    height, width, bands = tiles.pixels.shape[1:]
    square = tiles.pixels[chosen].reshape(side, side, height, width, bands)
    return square.transpose(0, 2, 1, 3, 4).reshape(side * height, side * width, bands)


def write(path: Path, image: NDArray[Any], spacing: float) -> None:
    height, width, bands = image.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=bands, dtype=image.dtype,
        crs=CRS, transform=rasterio.Affine(spacing, 0, ORIGIN[0], 0, -spacing, ORIGIN[1]),
        tiled=True, photometric="RGB",
    ) as raster:  # fmt: skip
        raster.write(image.transpose(2, 0, 1))


def mapped(path: Path, model: Path, mode: str, order: str, output: Path) -> NDArray[np.uint8]:
    """Run the command line and return the class of every pixel of the image, 0 for none."""
    command = [
        sys.executable, "-m", "gigavim", "run", str(path), "--model", str(model), "--mode", mode,
        "--output", str(output), "--no-mask", "--json", "--force",
    ]  # fmt: skip
    if mode == "whole":
        command += ["--order", order]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (summary,) = json.loads(done.stdout)["images"]
    with rasterio.open(path) as image, rasterio.open(summary["geotiff"]) as made:
        # Nearest cell to each pixel's centre, by the coordinates that the map says of itself.
        x, y = image.transform * (
            np.arange(image.width) + 0.5,
            np.zeros(image.width) + 0.5,
        )
        columns = np.floor((~made.transform * (x, y))[0]).astype(int)
        x, y = image.transform * (
            np.zeros(image.height) + 0.5,
            np.arange(image.height) + 0.5,
        )
        lines = np.floor((~made.transform * (x, y))[1]).astype(int)
        cells = made.read(1)
    # The rim that no patch is centred on has the class of the nearest cell.
    lines, columns = lines.clip(0, len(cells) - 1), columns.clip(0, cells.shape[1] - 1)
    return np.asarray(cells[np.ix_(lines, columns)])


def accuracies(
    found: NDArray[np.uint8], labels: NDArray[np.int64], side: int, tile: int, cut: int
) -> list[tuple[float, int]]:
    """Return for each tile the share of its pixels that is right, and how many it has."""
    whole = np.zeros((side * tile, side * tile), np.uint8)
    inside = np.zeros(whole.shape, bool)
    whole[cut:, cut:], inside[cut:, cut:] = found, True
    of_tile = []
    for number, label in enumerate(labels):
        y, x = number // side * tile, number % side * tile
        there = (slice(y, y + tile), slice(x, x + tile))
        seen = inside[there]
        of_tile.append((float((whole[there] == label + 1)[seen].mean()), int(seen.sum())))
    return of_tile


def interval(
    shares: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Return the weighted mean and its 95 % bootstrap interval."""
    random = np.random.default_rng(0)
    drawn = random.integers(0, len(shares), (1000, len(shares)))
    means = (shares[drawn] * weights[drawn]).sum(1) / weights[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.average(shares, weights=weights)), float(low), float(high)


if __name__ == "__main__":
    main()
