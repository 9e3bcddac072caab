"""What a classifier is worth: torchmetrics' figures, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
)

RESAMPLES = 1000
"""Of the bootstrap."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and the interval that holds 95 % of its bootstrap resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a model on held-out images."""

    classes: tuple[str, ...]
    images: int
    groups: int
    by_name: dict[str, Figure]
    """``accuracy``, ``balanced_accuracy``, ``mean_iou`` (intersection over union), ``f1`` of each
    class, and ``auroc`` of two classes; of nuclei ``dice`` and ``aji``."""
    confusion: tuple[tuple[int, ...], ...]
    """Images by their class, a row each, and by what they were taken for; empty without classes."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "images": self.images,
            "groups": self.groups,
            "classes": list(self.classes),
            "figures": {
                name: {"value": each.value, "low": each.low, "high": each.high}
                for name, each in self.by_name.items()
            },
            "confusion": [list(row) for row in self.confusion],
        }

    def as_metrics(self, split: str) -> dict[str, float]:
        """Return it as `ModelSpec.metrics` takes it."""
        return {
            f"{split} {name}{end}": value
            for name, figure in self.by_name.items()
            for end, value in (("", figure.value), (" low", figure.low), (" high", figure.high))
        }


def figures_of(
    probs: Tensor, labels: Tensor, groups: Sequence[str], classes: Sequence[str], seed: int = 0
) -> Figures:
    """Compare what a classifier says with what is right.

    Groups are drawn with replacement, not images: those of one slide are no independent witnesses.

    Parameters
    ----------
    probs
        Of the classes, shape (n, K).
    labels
        Index of the right class, shape (n,).
    groups
        Of each image.
    """
    found = _figures(probs, labels, classes)
    by_group: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        by_group.setdefault(group, []).append(row)
    members = [np.array(rows) for rows in by_group.values()]
    random = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(RESAMPLES):
        chosen = random.integers(0, len(members), len(members))
        rows = torch.from_numpy(np.concatenate([members[i] for i in chosen]))
        for name, value in _figures(probs[rows], labels[rows], classes).items():
            drawn[name].append(value)
    by_name = {
        name: Figure(value, *_percentiles(np.array(drawn[name]))) for name, value in found.items()
    }
    confusion = multiclass_confusion_matrix(probs, labels, len(classes)).tolist()
    return Figures(
        tuple(classes), len(labels), len(members), by_name, tuple(tuple(row) for row in confusion)
    )


def figures_of_counts(counts: NDArray[np.int64], classes: Sequence[str], seed: int = 0) -> Figures:
    """Compare a map with what is right, of pixels that are too many to hold; as `figures_of`.

    Classes that no pixel is of have no F1, and no part in the means over classes.

    Parameters
    ----------
    counts
        Pixels of each group by their class and by what they were taken for, shape (G, K, K).
    """
    total = counts.sum(0)
    present = total.sum(1) > 0
    found = _of_counts(total[None], classes, present)
    random = np.random.default_rng(seed)
    groups = len(counts)
    drawn = random.multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)
    resampled = _of_counts(np.tensordot(drawn, counts, 1), classes, present)
    by_name = {
        name: Figure(float(value[0]), *_percentiles(resampled[name]))
        for name, value in found.items()
    }
    confusion = tuple(tuple(row) for row in total.tolist())
    return Figures(tuple(classes), int(total.sum()), groups, by_name, confusion)


def _of_counts(
    counts: NDArray[np.int64], classes: Sequence[str], present: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """Return figures of each of several confusions, shape (n, K, K)."""
    right = np.diagonal(counts, axis1=1, axis2=2)
    are, taken = counts.sum(2), counts.sum(1)
    with np.errstate(invalid="ignore"):
        recall = np.where(are > 0, right / are, np.nan)
        iou = np.where(are > 0, right / (are + taken - right), np.nan)
        f1 = np.where(are + taken > 0, 2 * right / (are + taken), 0)
    figures = {
        "accuracy": right.sum(1) / counts.sum((1, 2)),
        "balanced_accuracy": np.nanmean(recall, 1),
        "mean_iou": np.nanmean(iou, 1),
    }
    return figures | {
        f"f1 {name}": f1[:, index] for index, name in enumerate(classes) if present[index]
    }


def _figures(probs: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, float]:
    k = len(classes)
    predicted = probs.argmax(1)
    # Looking whether labels are in range takes most of the time, and they are the same each time.
    accuracy = partial(multiclass_accuracy, predicted, labels, k, validate_args=False)
    figures = {
        "accuracy": accuracy(average="micro").item(),
        "balanced_accuracy": accuracy(average="macro").item(),
        "mean_iou": multiclass_jaccard_index(predicted, labels, k, validate_args=False).item(),
    }
    scores = multiclass_f1_score(predicted, labels, k, average="none", validate_args=False)
    figures |= {f"f1 {name}": score for name, score in zip(classes, scores.tolist(), strict=True)}
    if k == 2 and 0 < labels.sum() < len(labels):
        figures["auroc"] = binary_auroc(probs[:, 1], labels, validate_args=False).item()
    return figures


def _percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
