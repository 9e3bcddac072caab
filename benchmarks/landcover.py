"""ResNet-18 on land cover: ``python benchmarks/landcover.py eurosat_rgb.zip FOLDER``, a JSON line.

What `gigavim train landcover` trains a Vim on, a plain convolutional network learns from scratch:
the same split, augmentation, batches, optimiser and number of epochs (those of all phases
together). Checkpoints, log and curves go to FOLDER; the same command continues a run that was
stopped. The test split is looked at once, at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from gigavim.memory import keep_freed_memory
from gigavim.pipelines.train.begin import first_spec
from gigavim.pipelines.train.classification import classification_task, predict
from gigavim.pipelines.train.classifier import labelled
from gigavim.pipelines.train.figures import figures_of
from gigavim.pipelines.train.loop import fit
from gigavim.pipelines.train.project import read_project
from gigavim.pipelines.train.split import split_by_group
from gigavim.pipelines.train.tiles import read_tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    keep_freed_memory()

    project = read_project("landcover")
    phase = dataclasses.replace(
        project.phases[0], epochs=sum(phase.epochs for phase in project.phases)
    )
    tiles = split_by_group(read_tiles(args.data), project.seed)
    classes = tuple(sorted({tile.label for tile in tiles.tiles}))
    spec = first_spec(project, tiles, classes, None)
    sets = {name: labelled(tiles, name, spec) for name in ("train", "val", "test")}
    task = classification_task(
        sets["train"], sets["val"], project.augmentation, phase, project.seed
    )
    torch.manual_seed(project.seed)
    model = ResNet18(len(classes))
    start = time.process_time()
    validation = fit(model, task, phase, args.folder, device=args.device)
    figures = figures_of(
        predict(model, sets["test"]),
        torch.from_numpy(sets["test"].labels),
        [tiles.tiles[row].group for row in tiles.rows("test")],
        classes,
    )
    result = {
        "benchmark": "landcover",
        "model": "resnet18",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": phase.epochs,
        "cpu_seconds_of_this_call": round(time.process_time() - start),
        "validation_accuracy": validation,
        **figures.as_dict(),
    }
    print(json.dumps(result))


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
