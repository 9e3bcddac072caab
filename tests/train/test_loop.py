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
from gigavim.pipelines.train.loop import Task, fit, moving_average, parameter_groups
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


def test_rates_skips_and_positions_do_not_decay() -> None:
    torch.manual_seed(0)
    project = Project(model={"width": 16, "depth": 1, "class_token": "middle",
                             "position": "learned"})  # fmt: skip
    encoder = VisionMamba(architecture(project, image_size=16, bands=3, classes=2))
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}

    decayed, others = parameter_groups(encoder, 0.05)

    of_decayed = {names[id(parameter)] for parameter in decayed["params"]}
    of_others = {names[id(parameter)] for parameter in others["params"]}
    assert of_decayed | of_others == set(names.values())
    assert {"patch_embed.proj.weight", "layers.0.mixer.in_proj.weight", "head.weight"} <= of_decayed
    assert {
        "layers.0.mixer.A_log", "layers.0.mixer.A_b_log", "layers.0.mixer.D", "pos_embed",
        "cls_token", "norm_f.weight", "head.bias",
    } <= of_others  # fmt: skip
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)


def test_the_average_is_at_first_that_of_all_weights_then_follows_slowly() -> None:
    averaged = moving_average(0.9)

    def step(updates: int) -> float:
        return averaged(torch.zeros(1), torch.ones(1), torch.tensor(updates)).item()

    assert step(1) == pytest.approx(1 - 2 / 11)
    assert step(10_000) == pytest.approx(0.1)


def test_training_stops_where_validation_stays_as_it_is(tmp_path: Path) -> None:
    patient = replace(PHASE, epochs=50, learning_rate=1e-9, patience=2)

    fit(model(), task(), patient, tmp_path, device="cpu")

    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + 1 + 2


def test_rare_classes_weigh_more() -> None:
    """An error on the one tile of a class counts as much as errors on the three of another."""
    pixels = np.zeros((4, 16, 16, 3), np.uint8)
    labels = np.array([0, 0, 0, 1])
    uneven = Labelled(pixels, labels, 2, 1.0, (0.0,) * 3, (1.0,) * 3)
    weighted = replace(PHASE, class_weights=True, smoothing=0.0)
    loss = classification_task(uneven, uneven, Augmentation(), weighted, seed=0).loss
    targets = torch.eye(2)[labels]

    always_common = torch.tensor([[9.0, 0.0]]).expand(4, 2)
    always_rare = torch.tensor([[0.0, 9.0]]).expand(4, 2)

    assert loss(always_common, targets).item() == pytest.approx(loss(always_rare, targets).item())
