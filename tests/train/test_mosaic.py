from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from gigavim.checkpoint import load_model
from gigavim.errors import GigavimError
from gigavim.pipelines.train.augment import Augmentation
from gigavim.pipelines.train.batches import Labelled
from gigavim.pipelines.train.classifier import train_classifier
from gigavim.pipelines.train.mosaic import (
    MosaicAndTileBatches,
    MosaicBatches,
    PatchClassifier,
    PlainMosaics,
    joined,
    scene_order,
)
from gigavim.pipelines.train.project import Phase, Project
from gigavim.pipelines.train.split import split_by_group
from gigavim.pipelines.train.tiles import read_tiles
from tile_files import tile, write_folder

PHASE = Phase(batch=8, mosaic=2)


def flat(count: int = 16, side: int = 16) -> Labelled:
    """Tiles of class c whose pixels are all c."""
    labels = np.arange(count) % 3
    pixels = np.broadcast_to(labels[:, None, None, None], (count, side, side, 3)).astype(np.uint8)
    return Labelled(pixels, labels, 3, 1.0, (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("stride", [8, 4])
def test_a_patch_of_a_mosaic_is_of_the_classes_that_it_shows_by_area(stride: int) -> None:
    for images, targets in MosaicBatches(flat(), Augmentation(), PHASE, (8, stride), seed=0):
        assert images.shape == (2, 3, 32, 32)
        shown = images[:, 0].unfold(1, 8, stride).unfold(2, 8, stride).mean((3, 4)).flatten()
        torch.testing.assert_close(targets @ torch.arange(3.0), shown)
        torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))


@pytest.mark.parametrize(
    ("down", "across", "rows"), [(2, 2, [[0, 1], [2, 3]]), (1, 4, [[0, 1, 2, 3]])]
)
def test_images_are_joined_row_by_row(down: int, across: int, rows: list[list[int]]) -> None:
    made = joined(torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2), down, across)
    assert made[0, 0, ::2, ::2].tolist() == rows


def test_scenes_are_of_all_tiles_and_as_wide_as_these_allow() -> None:
    phase = Phase(batch=16, mosaic=4, scenes=True)
    shapes = set()
    for seed in range(20):
        for images, targets in MosaicBatches(flat(), Augmentation(), phase, (8, 8), seed=seed):
            shapes.add(tuple(images.shape[2:]))
            shown = images[:, 0].unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4)).flatten()
            torch.testing.assert_close(targets @ torch.arange(3.0), shown)
            torch.testing.assert_close(targets.sum(0).long(), torch.tensor([24, 20, 20]))
    assert shapes == {(64, 64), (32, 128)}


def test_tiles_of_a_class_lie_together_in_a_scene_more_often_than_by_chance() -> None:
    labels = np.arange(60) % 10
    orders = [scene_order(labels, torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert all(sorted(order) == list(range(60)) for order in orders)
    alike = np.array([np.mean(np.diff(labels[order]) == 0) for order in orders])
    # In order, 50 of 59 neighbours are alike; by chance, one in twelve.
    assert alike.min() < 0.2
    assert alike.max() > 0.75
    assert 0.3 < alike.mean() < 0.6


def test_validation_sees_the_same_mosaics_each_time() -> None:
    mosaics = PlainMosaics(flat(), PHASE, (8, 8))
    first, second = list(mosaics), list(mosaics)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("every", "sides"), [(2, [32, 16, 32, 16]), (3, [32, 16, 16, 32])])
def test_mosaics_and_tiles_take_turns(every: int, sides: list[int]) -> None:
    phase = dataclasses.replace(PHASE, mosaic_every=every)
    batches = list(MosaicAndTileBatches(flat(32), Augmentation(), phase, (8, 8), seed=0))
    assert [images.shape[2] for images, _ in batches] == sides
    for images, targets in batches:
        if images.shape[2] == 16:
            assert torch.equal(targets.argmax(1).float(), images[:, 0, 0, 0])


def test_a_batch_too_small_for_a_mosaic_is_refused() -> None:
    with pytest.raises(GigavimError, match="3 x 3 tiles needs as many in a batch, and there are 8"):
        MosaicBatches(flat(), Augmentation(), dataclasses.replace(PHASE, mosaic=3), (8, 8), seed=0)


def test_a_model_that_learned_from_mosaics_names_each_patch(tmp_path: Path) -> None:
    project = Project(
        model={"width": 16, "depth": 2, "state": 4},
        phases=(Phase(epochs=6, batch=8, learning_rate=1e-2, mosaic=2),),
    )
    tiles = split_by_group(read_tiles(write_folder(tmp_path / "tiles", count=24)))
    output = tmp_path / "model.safetensors"
    train_classifier(project, tiles, output, device="cpu", precision="float32")
    model = load_model(output)
    both = np.concatenate([tile("forest", 100, 32), tile("sea", 100, 32)], 1)
    pixels = torch.from_numpy(both.transpose(2, 0, 1)).float() * model.spec.scale
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.spec.mean, model.spec.std))
    normalised = ((pixels - mean) / std)[None]
    classify = PatchClassifier(model.encoder, tile=64)
    with torch.inference_mode():
        assert classify(normalised).argmax(1).view(4, 8).tolist() == [[0] * 4 + [1] * 4] * 4
        left, right = (normalised[..., :32], normalised[..., 32:])
        assert model.encoder(torch.cat([left, right])).argmax(1).tolist() == [0, 1]
