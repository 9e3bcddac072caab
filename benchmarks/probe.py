"""What a few labels make of an encoder of H&E: ``python benchmarks/probe.py MODEL DATA``.

Tiles that no pretraining saw are classified by logistic regression on a few labelled ones: on the
mean feature of a tile, on that of the same encoder with random weights, and on histograms of its
colours. Colorectal tissue (CRC-VAL-HE-7K, 7 classes): some tiles of each class are labelled, the
others tell; their patients are not known. Breast (BreakHis, benign or malignant): labelled tiles
are of patients that were learned from without labels, those that tell of others.

Which tiles may tell is in ``MODEL.split.csv``, whose hash MODEL holds. Prints a table, or JSON
lines with ``--json``. A figure is the mean balanced accuracy over draws of labelled tiles, its
interval of 95 % by bootstrap over the tiles that tell: patients of BreakHis are too few for one
over them. A gain is that of the encoder, in the same draws and the same bootstrap samples.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import rgb2hed, rgb2lab
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gigavim.checkpoint import Model, load_model
from gigavim.encoder import VisionMamba
from gigavim.geometry import Window
from gigavim.sources import Plane, open_source

LABELLED = 2, 5, 10
"""Labelled tiles of each class."""
FOLDS = 5
"""Of the labelled tiles, to choose how strongly to regularise; fewer where there are fewer."""
STRENGTHS = np.logspace(-4, 1, 6)
RESAMPLED = 1000
UNTRAINED = 3
"""Encoders with random weights; their mean counts."""
BINS = 16
"""Of the histogram of each colour."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Tiles:
    """Labelled tiles, and which of them may be labelled and may tell in a draw."""

    name: str
    files: tuple[Path, ...]
    spacings: tuple[float, ...]
    labels: NDArray[np.str_]
    groups: NDArray[np.str_]
    """What is drawn together in the bootstrap."""
    may_be_labelled: NDArray[np.bool_]
    may_tell: NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", type=Path, help="in place of MODEL.split.csv")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    model = load_model(args.model)
    split = recorded(model, args.split or args.model.with_suffix(".split.csv"))
    if not args.json:
        print("| tiles | labelled | features | balanced accuracy | gain of the encoder |")
        print("|---|--:|---|---|---|")
    for tiles in (kather(args.data, split), breakhis(args.data, split)):
        features = all_features(model, tiles)
        for count in LABELLED:
            for result in compared(tiles, features, count, args.draws):
                print(json.dumps(result) if args.json else row(result), flush=True)


def recorded(model: Model, path: Path) -> dict[str, dict[str, str]]:
    """Return the lines of the split that a model was trained on, by file.

    Raises
    ------
    SystemExit
        If it is another split, or the model holds none: then nothing says what it has seen.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != model.spec.split:
        raise SystemExit(f"{path} is not the split that {model.path} was trained on")
    return {line["file"]: line for line in csv.DictReader(content.decode().splitlines())}


def kather(data: Path, split: dict[str, dict[str, str]]) -> Tiles:
    """CRC-VAL-HE-7K: classes with enough tiles that some remain to tell."""
    folder = "labelled/kather_nct_ccby"
    rows = [line for line in lines(data / folder) if line["file"].startswith("CRCVAL")]
    labels = np.array([line["label"] for line in rows])
    rows = [row for row in rows if (labels == row["label"]).sum() > max(LABELLED)]
    held_out = unseen(folder, rows, split)
    files = [f"{folder}/{row['file']}" for row in rows]
    return Tiles(
        "kather",
        tuple(data / file for file in files),
        (0.5,) * len(files),
        np.array([row["label"] for row in rows]),
        np.array([split[file]["group"] for file in files]),
        held_out,
        held_out,
    )


def breakhis(data: Path, split: dict[str, dict[str, str]]) -> Tiles:
    """All tiles; those of unseen patients tell."""
    folder = "labelled/breakhis_mini_ccby"
    rows = lines(data / folder)
    held_out = unseen(folder, rows, split)
    return Tiles(
        "breakhis",
        tuple(data / folder / row["file"] for row in rows),
        (1.0,) * len(rows),
        np.array([row["label"] for row in rows]),
        np.array([row["file"] for row in rows]),
        ~held_out,
        held_out,
    )


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def unseen(
    folder: str, rows: Sequence[dict[str, str]], split: dict[str, dict[str, str]]
) -> NDArray[np.bool_]:
    """Tell which tiles no training read: the test of the split.

    Raises
    ------
    SystemExit
        If the split does not name one.
    """
    files = [f"{folder}/{row['file']}" for row in rows]
    unknown = [file for file in files if file not in split]
    if unknown:
        raise SystemExit(f"the split says nothing of {len(unknown)} tiles, as {unknown[0]}")
    return np.array([split[file]["split"] == "test" for file in files])


def all_features(model: Model, tiles: Tiles) -> dict[str, list[Values]]:
    """Return what tiles are told apart by, shape (n, feature); several where chance made them."""
    architecture = model.spec.architecture
    untrained = []
    for seed in range(UNTRAINED):
        torch.manual_seed(seed)
        untrained.append(dataclasses.replace(model, encoder=VisionMamba(architecture).eval()))
    return {
        "encoder": [described(tiles, lambda pixels: mean_feature(model, pixels), model)],
        "random weights": [
            described(tiles, lambda pixels, each=each: mean_feature(each, pixels), model)
            for each in untrained
        ],
        "colours": [described(tiles, colours)],
    }


def described(
    tiles: Tiles, describe: Callable[[NDArray[np.uint8]], Values], model: Model | None = None
) -> Values:
    """Describe each tile, at the spacing of a model or its own."""
    spacing = model.spec.spacing if model else None
    described = []
    for file, own in zip(tiles.files, tiles.spacings, strict=True):
        plane = Plane.at(open_source(file, source_spacing=own), spacing)
        pixels = plane.read(Window(0, 0, plane.height, plane.width))
        described.append(describe(pixels.values))
    return np.stack(described).astype(np.float64)


@torch.inference_mode()
def mean_feature(model: Model, image: NDArray[np.uint8]) -> Values:
    """Return the mean over the whole patches of a tile, read as one sequence."""
    spec, patch, stride = model.spec, model.encoder.config.patch, model.encoder.config.stride
    pixels = torch.tensor((image * spec.scale - spec.mean) / spec.std, dtype=torch.float32)
    patches = pixels.unfold(0, patch, stride).unfold(1, patch, stride).permute(0, 1, 3, 4, 2)
    tokens = model.encoder.embed(patches).flatten(0, 1)[None]
    position = model.encoder.position_for(*patches.shape[:2])
    mean: Values = model.encoder.mix(tokens, position).tokens[0].mean(0).double().numpy()
    return mean


def colours(image: NDArray[np.uint8]) -> Values:
    """Return histograms of lightness and both colours of CIELAB, and of each stain of HED.

    Their square roots, so that distances are those of Hellinger.
    """
    ranges = ((0, 100), (-20, 60), (-60, 20)), ((0, 0.3), (0, 0.3), (0, 0.3))
    histograms = []
    for space, limits in zip((rgb2lab(image), rgb2hed(image)), ranges, strict=True):
        for channel, (low, high) in enumerate(limits):
            values = np.clip(space[..., channel], low, high)
            histograms.append(np.histogram(values, BINS, (low, high))[0] / values.size)
    return np.sqrt(np.concatenate(histograms))


def compared(
    tiles: Tiles, features: dict[str, list[Values]], count: int, draws: int
) -> Iterator[dict[str, Any]]:
    """Yield the figures of all features with some labelled tiles of each class."""
    correct = {
        name: np.mean([right(tiles, each, count, draws) for each in values], 0)
        for name, values in features.items()
    }
    samples = list(resampled(tiles))
    scores = {
        name: np.array([balanced(tiles.labels[s], values[s]) for s in samples])
        for name, values in correct.items()
    }
    for name, values in correct.items():
        result: dict[str, Any] = {
            "tiles": tiles.name,
            "labelled": count,
            "features": name,
            "balanced_accuracy": round(balanced(tiles.labels, values), 3),
            "interval": interval(scores[name]),
        }
        if name != "encoder":
            gain = balanced(tiles.labels, correct["encoder"]) - balanced(tiles.labels, values)
            result |= {
                "gain": round(gain, 3),
                "gain_interval": interval(scores["encoder"] - scores[name]),
            }
        yield result


def right(tiles: Tiles, values: Values, count: int, draws: int) -> Values:
    """Return how often each tile was told, of the draws in which it was not labelled; else NaN."""
    told = np.full((draws, len(values)), np.nan)
    for draw in range(draws):
        labelled = drawn(tiles, count, np.random.default_rng([draw, count]))
        # What is labelled tells nothing, nor what belongs with it.
        tells = tiles.may_tell & ~np.isin(tiles.groups, tiles.groups[labelled])
        classifier = fitted(values[labelled], tiles.labels[labelled], count)
        told[draw, tells] = classifier.predict(values[tells]) == tiles.labels[tells]
    seen = ~np.isnan(told).all(0)
    often = np.full(len(values), np.nan)
    often[seen] = np.nanmean(told[:, seen], 0)
    return often


def drawn(tiles: Tiles, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw labelled tiles, as many of each class."""
    rows = [
        random.choice(np.flatnonzero(tiles.may_be_labelled & (tiles.labels == label)), count, False)
        for label in np.unique(tiles.labels)
    ]
    return np.concatenate(rows)


def fitted(values: Values, labels: NDArray[np.str_], count: int) -> GridSearchCV:
    """Fit a classifier, as regularised as does best among the labelled tiles."""
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": STRENGTHS},
        scoring="neg_log_loss",
        cv=min(FOLDS, count),
    )
    return search.fit(values, labels)


def balanced(labels: NDArray[np.str_], correct: Values) -> float:
    """Return the mean over classes of how often their tiles were told."""
    known = ~np.isnan(correct)
    classes = np.unique(labels[known])
    return float(np.mean([correct[known & (labels == label)].mean() for label in classes]))


def resampled(tiles: Tiles) -> Iterator[NDArray[np.int64]]:
    """Yield tiles that may tell, groups of each class drawn with repetition."""
    random = np.random.default_rng(0)
    strata = []
    for label in np.unique(tiles.labels[tiles.may_tell]):
        rows = np.flatnonzero(tiles.may_tell & (tiles.labels == label))
        strata.append(
            [rows[tiles.groups[rows] == group] for group in np.unique(tiles.groups[rows])]
        )
    for _ in range(RESAMPLED):
        chosen = [of[i] for of in strata for i in random.integers(len(of), size=len(of))]
        yield np.concatenate(chosen)


def interval(scores: Values) -> list[float]:
    return [round(float(bound), 3) for bound in np.percentile(scores, (2.5, 97.5))]


def row(result: dict[str, Any]) -> str:
    """Write a result as a line of the table."""
    gain = ""
    if "gain" in result:
        low, high = result["gain_interval"]
        gain = f"{result['gain']:+.3f} ({low:+.3f} to {high:+.3f})"
    low, high = result["interval"]
    figure = f"{result['balanced_accuracy']:.3f} ({low:.3f} to {high:.3f})"
    return (
        f"| {result['tiles']} | {result['labelled']} | {result['features']} | {figure} | {gain} |"
    )


if __name__ == "__main__":
    main()
