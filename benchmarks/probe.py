"""Whether `slide-mini` learnt anything: ``python benchmarks/probe.py TILES``, a JSON line each.

TILES holds H&E tiles at 0.5 µm/px, none of which it was trained on, and ``labels.csv`` (file,
label). The mean feature of a tile is classified by logistic regression, in ten splits of five folds
each; beside it the same encoder with random weights, and mean and deviation of the three colours.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.io import imread
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gigavim.checkpoint import ModelSpec, load_model
from gigavim.encoder import VisionMamba


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tiles", type=Path)
    args = parser.parse_args()

    with (args.tiles / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels = np.array([row["label"] for row in rows])
    # Five folds want five of a class.
    kept = [i for i, label in enumerate(labels) if (labels == label).sum() >= 5]
    images = [imread(args.tiles / rows[i]["file"])[..., :3] for i in kept]
    model = load_model("slide-mini")
    torch.manual_seed(0)
    untrained = VisionMamba(model.spec.architecture).eval()
    features = {
        "slide-mini": np.stack([mean_feature(model.encoder, model.spec, i) for i in images]),
        "random weights": np.stack([mean_feature(untrained, model.spec, i) for i in images]),
        "colours": np.stack([np.r_[i.mean((0, 1)), i.std((0, 1))] for i in images]),
    }
    for name, values in features.items():
        scores = cross_val_score(
            make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000)),
            values,
            labels[kept],
            scoring="balanced_accuracy",
            cv=RepeatedStratifiedKFold(n_splits=5, n_repeats=10, random_state=0),
        ).reshape(10, 5)
        result = {
            "benchmark": "probe",
            "features": name,
            "tiles": len(kept),
            "classes": len(set(labels[kept])),
            "balanced_accuracy": round(float(scores.mean()), 3),
            "over_splits": [round(float(s), 3) for s in np.percentile(scores.mean(1), (0, 100))],
        }
        print(json.dumps(result))


@torch.inference_mode()
def mean_feature(
    encoder: VisionMamba, spec: ModelSpec, image: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Return the mean over the patches of a tile, averaged two by two to 1 µm/px."""
    patch = encoder.config.patch
    side = min(image.shape[:2]) // (2 * patch) * patch
    half = image[: 2 * side, : 2 * side].reshape(side, 2, side, 2, 3).mean((1, 3)) * spec.scale
    pixels = torch.tensor((half - spec.mean) / spec.std, dtype=torch.float32)
    count = side // patch
    patches = pixels.view(count, patch, count, patch, 3).transpose(1, 2).flatten(0, 1)
    features: NDArray[np.float32] = (
        encoder.mix(encoder.embed(patches)[None]).tokens[0].mean(0).numpy()
    )
    return features


if __name__ == "__main__":
    main()
