"""Images with one class each: what is learned, and what a trained model says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from gigavim.pipelines.train.augment import Augmentation
from gigavim.pipelines.train.batches import Labelled, PlainBatches, TrainingBatches
from gigavim.pipelines.train.loop import Task
from gigavim.pipelines.train.project import Phase

EVALUATED = 256
"""Images at once."""


def classification_task(
    train: Labelled, validation: Labelled, augmentation: Augmentation, phase: Phase, seed: int
) -> Task:
    """Return the task of telling images apart."""
    return Task(
        training=partial(TrainingBatches, train, augmentation, phase.batch, seed),
        validation=PlainBatches(validation, EVALUATED),
        loss=soft_cross_entropy(class_weights(train, phase), phase.smoothing),
        metrics=accuracies(train.classes),
        monitor=monitored(phase),
    )


def class_weights(train: Labelled, phase: Phase) -> Tensor | None:
    """Return the weight of each class in the loss; None where all weigh the same."""
    if not phase.class_weights:
        return None
    counts = np.bincount(train.labels, minlength=train.classes)
    return torch.from_numpy((counts.mean() / counts).astype(np.float32))


def accuracies(classes: int) -> MetricCollection:
    """Return what is measured in validation."""
    return MetricCollection(
        {
            "accuracy": _OfTargets(classes, average="micro"),
            "balanced_accuracy": _OfTargets(classes, average="macro"),
        }
    )


def monitored(phase: Phase) -> str:
    """Return which of these chooses the model."""
    return "balanced_accuracy" if phase.class_weights else "accuracy"


def soft_cross_entropy(
    weights: Tensor | None, smoothing: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the cross entropy of logits and probabilities, both (b, K)."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        weight = None if weights is None else weights.to(logits.device)
        return nn.functional.cross_entropy(
            logits.float(), targets, weight, label_smoothing=smoothing
        )

    return loss


class _OfTargets(MulticlassAccuracy):
    """Accuracy that takes logits and the probabilities of classes."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds, target.argmax(1))


@torch.inference_mode()
def predict(model: nn.Module, data: Labelled) -> Tensor:
    """Return the probabilities of the classes, shape (n, K)."""
    batches = PlainBatches(data, EVALUATED)
    return torch.cat([model(images).float().softmax(-1) for images, _ in batches])
