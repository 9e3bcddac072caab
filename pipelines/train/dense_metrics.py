"""How well nuclei are found: Dice and the aggregated Jaccard index, per image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from gigavim.nuclei import NucleiConfig, instances
from gigavim.pipelines.train.figures import RESAMPLES, Figure

Labels = NDArray[np.integer[Any]]
"""0 outside nuclei, else the number of the nucleus, shape (h, w)."""


def dice(truth: Labels, found: Labels) -> float:
    """Return twice the pixels that are nuclei in both, by those of each; 1 where neither has any.

    >>> dice(np.array([[1, 1, 0]]), np.array([[0, 2, 2]]))
    0.5
    """
    total = int((truth > 0).sum() + (found > 0).sum())
    return 2 * int(((truth > 0) & (found > 0)).sum()) / total if total else 1.0


def aggregated_jaccard(truth: Labels, found: Labels) -> float:
    """Return the aggregated Jaccard index (Kumar et al. 2017, doi 10.1109/TMI.2017.2677499).

    Each true nucleus is compared with the found one of the greatest intersection over union;
    intersections by unions, each summed, and nuclei that were compared with none count as union.
    1 where there is nothing to find, and nothing is.

    >>> aggregated_jaccard(np.array([[1, 1, 2, 2]]), np.array([[1, 1, 1, 1]]))
    0.5
    """
    true, found_ = (np.unique(labels, return_inverse=True)[1] for labels in (truth, found))
    # Numbered from 1; 0 is outside, whether an image has any outside or not.
    true = true + (truth.min() > 0)
    found_ = found_ + (found.min() > 0)
    rows, columns = int(true.max()) + 1, int(found_.max()) + 1
    shared = np.bincount((true * columns + found_).ravel(), minlength=rows * columns)
    shared = shared.reshape(rows, columns)
    area, found_area = shared.sum(1)[1:], shared.sum(0)[1:]
    both = shared[1:, 1:]
    if not len(area) or not len(found_area):
        return float(len(area) == len(found_area))
    union = area[:, None] + found_area - both
    best = (both / union).argmax(1)
    every = np.arange(len(area))
    hit = both[every, best] > 0
    missed = np.ones(len(found_area), np.bool_)
    missed[best[hit]] = False
    total = union[every, best][hit].sum() + area[~hit].sum() + found_area[missed].sum()
    return float(both[every, best].sum() / total)


def bootstrap(values: NDArray[np.floating[Any]], seed: int = 0) -> Figure:
    """Return a mean over images and the interval that holds 95 % of its resamples."""
    random = np.random.default_rng(seed)
    drawn = random.integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5])
    return Figure(float(values.mean()), float(low), float(high))


class OverImages(Metric):
    """The mean of a figure of instances over images, from logits and targets as `CropBatches`."""

    full_state_update = False

    def __init__(self, figure: Callable[[Labels, Labels], float], config: NucleiConfig) -> None:
        super().__init__()
        self.figure, self.config = figure, config
        self.add_state("total", torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), "sum")
        self.total: Tensor
        self.count: Tensor

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count images: logits (b, 2, h, w); targets (b, 3, h, w), the last of them the nuclei."""
        maps = preds.sigmoid().cpu().numpy()
        for (nucleus, depth), truth in zip(maps, target[:, 2].cpu().numpy(), strict=True):
            found = instances(nucleus, depth, self.config)
            self.total += self.figure(truth.astype(np.int64), found)
        self.count += len(preds)

    def compute(self) -> Tensor:
        """Return the mean."""
        return (self.total / self.count).float()


def nuclei_metrics(config: NucleiConfig) -> MetricCollection:
    """Return Dice and AJI."""
    figures = {"dice": dice, "aji": aggregated_jaccard}
    return MetricCollection(
        {name: partial(OverImages, each)(config) for name, each in figures.items()}
    )
