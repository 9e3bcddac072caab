"""Training that finds nuclei: data, augmentation, metrics, and a model that learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.io import imsave

from gigavim.checkpoint import load_model
from gigavim.errors import GigavimError
from gigavim.pipelines.train import dense
from gigavim.pipelines.train.augment import Augmentation
from gigavim.pipelines.train.dense import CropBatches, Normalisation, nuclei_loss, read_nuclei
from gigavim.pipelines.train.dense_augment import counterstained
from gigavim.pipelines.train.dense_metrics import aggregated_jaccard, bootstrap, dice
from gigavim.pipelines.train.dense_train import train_nuclei
from gigavim.pipelines.train.project import Phase, Project

SPLITS = ("train", "train", "train", "train", "val", "test")


def scene(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Return a bright image of 64 px with dark discs, and their numbers."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    labels = np.zeros((64, 64), np.uint16)
    for number, place in enumerate([(14, 14), (14, 46), (46, 14), (46, 46)], 1):
        cy, cx = place + random.uniform(-5, 5, 2)
        labels[np.hypot(y - cy, x - cx) < random.uniform(5, 9)] = number
    image = np.full((64, 64, 3), (225, 190, 215)) + random.normal(0, 5, (64, 64, 3))
    image[labels > 0] -= (140, 130, 70)
    return np.clip(image, 0, 255).astype(np.uint8), labels


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(dense, "CROP", 64)
    root = tmp_path / "nuclei"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    lines = ["id,domain,split"]
    for number, split in enumerate(SPLITS):
        image, labels = scene(number)
        imsave(root / "images" / f"{number}.png", image, check_contrast=False)
        imsave(root / "labels" / f"{number}.png", labels, check_contrast=False)
        lines.append(f"{number},{'rare' if number == 0 else 'common'},{split}")
    (root / "index.csv").write_text("\n".join(lines))
    return root


def batches(folder: Path, **options: float) -> CropBatches:
    train = read_nuclei(folder)["train"]
    augmentation = Augmentation(stain=0.1, zoom=1.3, **options)
    return CropBatches(train, Normalisation.of(train), augmentation, 4, seed=3)


def test_a_model_learns_to_find_nuclei(folder: Path, tmp_path: Path) -> None:
    project = Project(
        model={"width": 16, "depth": 1, "state": 4},
        phases=(Phase(epochs=60, batch=4, learning_rate=5e-3, average=0.8, patience=60),),
        augmentation=Augmentation(zoom=1.1, stain=0.02),
        spacing=0.5,
        unit="µm",
    )
    path = tmp_path / "tiny.safetensors"
    figures = train_nuclei(project, folder, path, device="cpu", precision="float32")
    assert figures.by_name["dice"].value > 0.8
    spec = load_model(path).spec
    assert spec.metrics["test dice"] == figures.by_name["dice"].value
    assert spec.nuclei is not None
    assert len(spec.stain) == 3


def test_batches_follow_from_the_seed_and_go_on_where_they_were(folder: Path) -> None:
    first, second = batches(folder), batches(folder)
    seen = [next(iter(first)) for _ in range(3)]
    _ = next(iter(second))
    second.load_state_dict({"epoch": 2, "number": 0})
    images, targets = next(iter(second))
    assert torch.equal(images, seen[2][0])
    assert torch.equal(targets, seen[2][1])


def test_crops_joined_to_wide_images_keep_their_targets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "MOSAIC", 0.0)
    images, targets = next(iter(batches(folder)))
    assert images.shape == (4, 3, 64, 64)
    dark = images.mean(1) < -0.5
    monkeypatch.setattr(dense, "MOSAIC", 1.0)
    wide, wide_targets = next(iter(batches(folder)))
    assert wide.shape[0] < 4
    assert wide.shape[0] * wide.shape[3] == 4 * 64
    assert wide_targets.shape[3] == wide.shape[3]
    assert (wide.mean(1) < -0.5).sum() == dark.sum()
    assert wide_targets.sum() == pytest.approx(targets.sum().item(), rel=1e-5)


def test_a_counterstain_leaves_the_shape_and_tints_what_is_no_nucleus() -> None:
    image = torch.full((64, 3, 32, 32), 0.7)
    image[:, 0] = 0.6
    nucleus = torch.zeros(64, 32, 32)
    stained = counterstained(image, nucleus, torch.Generator().manual_seed(0))
    assert stained.shape == image.shape
    assert ((stained >= 0) & (stained <= 1)).all()
    changed = (stained != image).flatten(1).any(1)
    assert 20 < changed.sum() < 44
    pinker = stained[changed].mean((2, 3))
    assert (pinker[:, 0] > pinker[:, 1]).float().mean() > 0.9


def test_the_loss_is_least_where_the_targets_are() -> None:
    targets = (torch.rand(2, 2, 8, 8) > 0.5).float()
    right = nuclei_loss((targets * 2 - 1) * 8, targets)
    assert right < 0.01
    assert nuclei_loss((1 - targets * 2) * 8, targets) > 5


def test_figures_of_what_is_known() -> None:
    truth = np.array([[1, 1, 0, 0, 2, 2, 0, 0]])
    assert dice(truth, truth) == aggregated_jaccard(truth, truth * 7) == 1
    missed = np.array([[1, 1, 0, 0, 0, 0, 0, 0]])
    assert aggregated_jaccard(truth, missed) == pytest.approx(2 / 4)
    spurious = np.array([[1, 1, 0, 0, 2, 2, 0, 3]])
    assert aggregated_jaccard(truth, spurious) == pytest.approx(4 / 5)
    merged = np.array([[1, 1, 1, 1, 1, 1, 0, 0]])
    assert aggregated_jaccard(truth, merged) == pytest.approx(4 / 12)
    nothing = np.zeros_like(truth)
    assert aggregated_jaccard(nothing, nothing) == dice(nothing, nothing) == 1
    assert aggregated_jaccard(truth, nothing) == aggregated_jaccard(nothing, truth) == 0
    full = np.ones_like(truth)
    assert aggregated_jaccard(full, full) == 1


def test_an_interval_holds_its_mean() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 40)
    figure = bootstrap(values)
    assert figure.value == pytest.approx(values.mean())
    assert figure.low < figure.value < figure.high
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * values.std() / 40**0.5, rel=0.2)


def test_rare_domains_are_drawn_more_often(folder: Path) -> None:
    chances = read_nuclei(folder)["train"].chances()
    assert chances.sum() == pytest.approx(1)
    assert chances[0] == pytest.approx(chances[1] * 3**0.5)


def test_a_set_that_lacks_something_is_refused(folder: Path) -> None:
    index = folder / "index.csv"
    table = index.read_text()
    index.write_text(table.replace("test", "train"))
    with pytest.raises(GigavimError, match="no image of the split 'test'"):
        read_nuclei(folder)
    index.write_text(table)
    (folder / "labels" / "5.png").unlink()
    with pytest.raises(GigavimError, match=r"no set of nuclei.*5\.png"):
        read_nuclei(folder)


def test_an_image_of_another_size_is_refused(folder: Path) -> None:
    imsave(folder / "images/1.png", np.zeros((32, 64, 3), np.uint8), check_contrast=False)
    with pytest.raises(GigavimError, match="1 is"):
        read_nuclei(folder)
