from __future__ import annotations

import numpy as np
import pytest
import torch

from gigavim.pipelines.train.figures import figures_of


def test_figures_are_those_of_the_confusion() -> None:
    """Of class a, 3 of 4 are right; of class b, 1 of 2."""
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    predicted = torch.tensor([0, 0, 0, 1, 1, 0])
    probs = torch.nn.functional.one_hot(predicted, 2).float()

    figures = figures_of(probs, labels, list("uvwxyz"), ("a", "b"))

    values = {name: figure.value for name, figure in figures.by_name.items()}
    assert figures.confusion == ((3, 1), (1, 1))
    assert values == pytest.approx(
        {
            "accuracy": 4 / 6,
            "balanced_accuracy": 0.625,
            "mean_iou": (3 / 5 + 1 / 3) / 2,
            "f1 a": 0.75,
            "f1 b": 0.5,
            "auroc": 0.625,
        }
    )
    assert (figures.images, figures.groups) == (6, 6)


def test_the_interval_of_an_accuracy_is_the_binomial_one() -> None:
    right = np.random.default_rng(0).random(1000) < 0.9
    labels = torch.zeros(1000, dtype=torch.long)
    probs = torch.from_numpy(np.stack([right, ~right], 1).astype(np.float32))

    found = figures_of(probs, labels, [str(i) for i in range(1000)], ("a", "b"))

    accuracy = found.by_name["accuracy"]
    assert accuracy.low == pytest.approx(accuracy.value - 1.96 * 0.0095, abs=0.003)
    assert accuracy.high == pytest.approx(accuracy.value + 1.96 * 0.0095, abs=0.003)


def test_images_of_one_group_are_no_independent_witnesses() -> None:
    """The same images, in ten groups that are right or wrong as one: the interval is far wider."""
    right = np.repeat([True] * 7 + [False] * 3, 50)
    labels = torch.zeros(500, dtype=torch.long)
    probs = torch.from_numpy(np.stack([right, ~right], 1).astype(np.float32))

    alone = figures_of(probs, labels, [str(i) for i in range(500)], ("a", "b"))
    grouped = figures_of(probs, labels, [str(i // 50) for i in range(500)], ("a", "b"))

    def width(figures: object) -> float:
        accuracy = figures.by_name["accuracy"]  # type: ignore[attr-defined]
        return float(accuracy.high - accuracy.low)

    assert width(grouped) > 4 * width(alone)
