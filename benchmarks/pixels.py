"""What a scene's features are worth where few pixels are labelled, against a forest on the bands.

    python benchmarks/pixels.py SCENE LABELS --bands blue=1,green=2,red=3,nir=4,swir1=5

LABELS are polygons or a raster, as `gigavim evaluate` takes them. Whole polygons (of a raster:
blocks, 16 to a side) are held out, never pixels; classes of a single polygon cannot be, and are
left out. Of what is not held out, so many pixels of each class are learned from, drawn with a seed.
Everybody gets the same pixels: a random forest and a logistic regression on the bands of a pixel,
on its bands and their means over the patch it is in, on the features of that patch, and on bands
and features. Prints a JSON line for each, with mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.warp import transform
from scipy.ndimage import uniform_filter
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gigavim.config import Resources, RunConfig
from gigavim.geometry import Window
from gigavim.pipelines.ground_truth import read_truth
from gigavim.pipelines.run import run_image
from gigavim.sources import Source, open_source
from gigavim.sources.pixel_grid import PixelGrid
from gigavim.store import ResultStore

TESTED = 20_000
"""Pixels at most that a fold is measured on."""
PATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene")
    parser.add_argument("labels", type=Path)
    parser.add_argument("--bands", default=None)
    parser.add_argument("--column", default=None)
    parser.add_argument("--values", default="", help="of a raster, as water=1,land=0")
    parser.add_argument("--model", default="scene-mini")
    parser.add_argument("--spacing", type=float, default=None, help="that the model reads at")
    parser.add_argument("--few", type=int, default=20, help="pixels of each class to learn from")
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    bands = tuple(args.bands.split(",")) if args.bands else None
    source = open_source(args.scene, bands=bands)
    values = {name: int(number) for name, number in _pairs(args.values)}
    table = _labelled(source, args.labels, values, args.column)
    with tempfile.TemporaryDirectory() as folder:
        features = _features(args, bands, Path(folder) / "scene.gigavim.zarr", table["xy"])
    seen = _bands(source, table["xy"])
    known = np.isfinite(features).all(1) & np.isfinite(seen["means"]).all(1)
    labels, groups = table["labels"][known], table["groups"][known]
    inputs = {
        "bands": seen["bands"][known],
        "bands and patch means": np.hstack([seen["bands"], seen["means"]])[known],
        "features": features[known],
        "bands and features": np.hstack([seen["bands"], features])[known],
    }
    folds = min(len(np.unique(groups[labels == k])) for k in np.unique(labels))
    print(json.dumps({"classes": table["classes"], "pixels": len(labels), "folds": min(folds, 4)}))
    for name, x in inputs.items():
        for kind in ("forest", "logistic"):
            found = [
                _measure(kind, x, labels, groups, min(folds, 4), args.few, seed)
                for seed in range(args.seeds)
            ]
            about = {"input": name, "classifier": kind, "few": args.few}
            print(json.dumps(about | _summary(found)), flush=True)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for pair in filter(None, text.split(",")):
        name, _, value = pair.rpartition("=")
        yield name, value


def _labelled(
    source: Source, path: Path, values: dict[str, int], column: str | None
) -> dict[str, Any]:
    """Return the labelled pixels: places in level 0, labels and groups."""
    finest, to_crs = source.levels[0], Affine(*source.transform)
    crs = CRS.from_wkt(source.crs)
    grid = PixelGrid(crs, to_crs, finest.height, finest.width)
    truth = read_truth(path, grid, values or None, column)
    parts = list(truth.parts())
    xs, ys, labels, groups = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("xs", "ys", "labels", "groups")
    )
    if truth.grid.crs != crs:
        xs, ys = (np.asarray(each) for each in transform(truth.grid.crs, crs, xs, ys))
    x, y = ~to_crs @ (xs, ys)
    inside = (x >= 0) & (y >= 0) & (x < finest.width) & (y < finest.height)
    for label in np.unique(labels):
        inside &= (labels != label) | (len(np.unique(groups[labels == label])) > 1)
    place = np.stack([x, y], 1)[inside].astype(np.int64)
    kept, labels = np.unique(labels[inside], return_inverse=True)
    names = [truth.classes[label] for label in kept]
    return {"classes": names, "xy": place, "labels": labels, "groups": groups[inside]}


def _features(
    args: argparse.Namespace, bands: tuple[str, ...] | None, path: Path, xy: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the features of the patches that pixels are in; NaN where there is none."""
    config = RunConfig(model=args.model, bands=bands, heads=("features",), spacing=args.spacing)
    run_image(args.scene, path, config, Resources("cpu"))
    store = ResultStore.open(path)
    grid = store.attributes["grid"]
    index, values = store.values("tokens/grid_index"), store.values("tokens/features")
    valid = store.values("tokens/valid") > 0
    laid = np.full((grid["rows"], grid["columns"], values.shape[1]), np.nan, np.float32)
    laid[tuple(index[valid].T)] = values[valid]
    cell_y, cell_x = grid["cell_level0"]
    row = ((xy[:, 1] + 0.5) / cell_y).astype(int).clip(0, grid["rows"] - 1)
    column = ((xy[:, 0] + 0.5) / cell_x).astype(int).clip(0, grid["columns"] - 1)
    return laid[row, column]


def _bands(source: Source, xy: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return the bands of pixels, and their means over a patch around each; NaN without."""
    finest = source.levels[0]
    pixels = source.read_level(0, Window(0, 0, finest.width, finest.height))
    values = pixels.values.astype(np.float64)
    share = uniform_filter(pixels.valid.astype(float), PATCH)[..., None]
    means = uniform_filter(values, (PATCH, PATCH, 1)) / np.maximum(share, 1e-9)
    values[~pixels.valid] = np.nan
    means[~pixels.valid] = np.nan
    return {"bands": values[xy[:, 1], xy[:, 0]], "means": means[xy[:, 1], xy[:, 0]]}


def _measure(
    kind: str,
    x: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    folds: int,
    few: int,
    seed: int,
) -> dict[str, float]:
    """Learn from few pixels of the groups of all folds but one, and try the pixels of that one."""
    random = np.random.default_rng(seed)
    said, right = [], []
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(x, labels, groups):
        rows = np.concatenate([_draw(random, train[labels[train] == k], few) for k in set(labels)])
        tested = _draw(random, test, TESTED)
        model = (
            RandomForestClassifier(300, class_weight="balanced", random_state=seed)
            if kind == "forest"
            else make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        )
        model.fit(x[rows], labels[rows])
        said.append(model.predict(x[tested]))
        right.append(labels[tested])
    y, p = np.concatenate(right), np.concatenate(said)
    return {
        "accuracy": accuracy_score(y, p),
        "balanced_accuracy": balanced_accuracy_score(y, p),
        "macro_f1": f1_score(y, p, average="macro"),
    }


def _draw(random: np.random.Generator, rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    return random.choice(rows, min(most, len(rows)), replace=False)


def _summary(found: list[dict[str, float]]) -> dict[str, float]:
    return {
        f"{name}{end}": round(float(of([each[name] for each in found])), 4)
        for name in found[0]
        for end, of in (("", np.mean), (" sd", np.std))
    }


if __name__ == "__main__":
    main()
