from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gigavim.encoder import VisionMamba
from gigavim.pipelines.train import loop
from gigavim.pipelines.train.augment import Augmentation
from gigavim.pipelines.train.batches import Labelled
from gigavim.pipelines.train.classification import classification_task
from gigavim.pipelines.train.loop import Task, fit
from gigavim.pipelines.train.project import Phase, Project, architecture

PHASE = Phase(epochs=2, batch=8, learning_rate=1e-2)


def data() -> Labelled:
    """Two classes: dark and light."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 44)
    pixels = random.integers(0, 128, (44, 16, 16, 3), np.uint8) + 100 * labels[:, None, None, None]
    return Labelled(pixels, labels, 2, 1 / 255, (0.4,) * 3, (0.3,) * 3)


def task() -> Task:
    augmentation = Augmentation(mixed=0.5, band_dropout=0.2)
    return classification_task(data(), data(), augmentation, PHASE, seed=3)


def model() -> nn.Module:
    torch.manual_seed(1)
    project = Project(model={"width": 16, "depth": 2, "state": 4})
    return VisionMamba(architecture(project, image_size=16, bands=3, classes=2))


def stopped_at(task: Task, batch: int) -> Task:
    """The same task, in which the machine goes down."""
    count = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal count
        count += torch.is_grad_enabled()
        if count == batch:
            raise ConnectionAbortedError
        return task.loss(outputs, targets)

    return replace(task, loss=loss)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("batch", [2, 5, 6, 8])
def test_a_run_that_was_killed_and_continued_equals_one_that_was_not(
    tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", timedelta(0))
    whole, halves = model(), model()
    fit(whole, task(), PHASE, tmp_path / "whole", device="cpu")

    with pytest.raises(ConnectionAbortedError):
        fit(halves, stopped_at(task(), batch), PHASE, tmp_path / "halves", device="cpu")
    halves = model()
    fit(halves, task(), PHASE, tmp_path / "halves", device="cpu")

    assert same(whole, halves)
    assert not same(whole, model())
