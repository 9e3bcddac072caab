"""Land cover by the Vim that ships and by a ResNet-18, with the haze over the tiles and without it.

    python benchmarks/landcover.py vim DATA MODEL        what `gigavim train landcover` made
    python benchmarks/landcover.py resnet DATA FOLDER    trains it or goes on, measures

What a Vim is trained on, a plain convolutional network learns from scratch: the same split and
phases, with their augmentation, batches, optimiser and epochs; but of tiles alone, since it names
nothing smaller, and each tile with a haze of its own: with one for all of a batch, the statistics
of its batch norm are of no batch that it is measured on (0.939 of validation tiles, and 0.974 with
statistics taken anew). Checkpoints, logs and curves go to FOLDER. The test split is looked at once,
at the end. Prints one JSON line for each share of the haze that is taken off.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gigavim.checkpoint import ModelSpec, load_model
from gigavim.memory import keep_freed_memory
from gigavim.pipelines.train.augment import Augmentation, cleared
from gigavim.pipelines.train.begin import first_spec
from gigavim.pipelines.train.classification import classification_task, predict
from gigavim.pipelines.train.classifier import labelled
from gigavim.pipelines.train.figures import figures_of
from gigavim.pipelines.train.loop import fit
from gigavim.pipelines.train.project import Project, read_project
from gigavim.pipelines.train.split import split_by_group
from gigavim.pipelines.train.tiles import TileSet, read_tiles

SHARES = (0.0, 0.5, 1.0)


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    keep_freed_memory()
    match sys.argv[1:]:
        case ["vim", data, model]:
            vim = load_model(model)
            show("vim", vim.encoder, vim.spec, split_by_group(read_tiles(data)))
        case ["resnet", data, folder]:
            project = read_project("landcover")
            tiles = split_by_group(read_tiles(data), project.seed)
            classes = tuple(sorted({tile.label for tile in tiles.tiles}))
            spec = first_spec(project, tiles, classes, None)
            show("resnet18", resnet(project, tiles, spec, Path(folder)), spec, tiles)
        case _:
            raise SystemExit(__doc__)


def resnet(project: Project, tiles: TileSet, spec: ModelSpec, folder: Path) -> nn.Module:
    torch.manual_seed(project.seed)
    model = ResNet18(spec.architecture.classes)
    train, validation = (labelled(tiles, split, spec) for split in ("train", "val"))
    for number, phase in enumerate(project.phases, 1):
        augmentation = HazeOfEach(**dataclasses.asdict(project.augmentation_in(phase)))
        task = classification_task(train, validation, augmentation, phase, project.seed)
        # In float32: a tenth faster than bfloat16 on a CPU without matrix units for it.
        score = fit(model, task, phase, folder / f"phase-{number}", precision="float32")
        print(f"phase {number}: validation {score:.4f}", file=sys.stderr)
    return model


class HazeOfEach(Augmentation):
    """The same changes, the haze drawn for each image."""

    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        images = Augmentation.change(dataclasses.replace(self, haze=()), images, generator)
        if not self.haze:
            return images
        return torch.cat([cleared(image[None], self.haze, generator) for image in images])


def show(name: str, model: nn.Module, spec: ModelSpec, tiles: TileSet) -> None:
    augmentation = read_project("landcover").phases[-1].augmentation
    assert augmentation is not None
    assert spec.classes is not None
    haze = np.array(augmentation.haze) / spec.scale
    groups = [tiles.tiles[row].group for row in tiles.rows("test")]
    test = labelled(tiles, "test", spec)
    for share in SHARES:
        clear = np.clip(test.pixels - share * haze, 0, None)
        probs = predict(model, dataclasses.replace(test, pixels=clear))
        figures = figures_of(probs, torch.from_numpy(test.labels), groups, spec.classes.names)
        result = {
            "benchmark": "landcover",
            "model": name,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "haze_taken_off": share,
            **figures.as_dict(),
        }
        print(json.dumps(result), flush=True)


class ResNet18(nn.Sequential):
    """He et al. 2015, arXiv 1512.03385, table 1: 11,689,512 parameters for 1,000 classes.

    Written out, since timm and torchvision do not run beside every build of PyTorch.
    """

    def __init__(self, classes: int) -> None:
        blocks = []
        for before, after, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
            blocks += [Residual(before, after, stride), Residual(after, after, 1)]
        super().__init__(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(512, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # convolutions on a CPU are faster so

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(images.contiguous(memory_format=torch.channels_last))
        return logits


class Residual(nn.Module):
    """Two convolutions of 3 x 3, and a way around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.around: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.around = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.convolutions(x) + self.around(x))


if __name__ == "__main__":
    main()
