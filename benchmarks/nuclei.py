"""Nuclei: a U-Net of like size on the same data; and one sequence against tiles.

    python benchmarks/nuclei.py unet DATA FOLDER                  trains it or goes on, measures
    python benchmarks/nuclei.py modes DATA MODEL FOLDER val|test    a mosaic, in both modes

Prints one JSON line a result.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gigavim.config import Resources, RunConfig
from gigavim.pipelines.run import run_image
from gigavim.pipelines.train.dense import LabelledNuclei, Normalisation, nuclei_task, read_nuclei
from gigavim.pipelines.train.dense_metrics import aggregated_jaccard, bootstrap, dice
from gigavim.pipelines.train.dense_train import nuclei_figures, predicted, tuned
from gigavim.pipelines.train.figures import Figure
from gigavim.pipelines.train.loop import fit
from gigavim.pipelines.train.project import read_project

SPACING = 0.5


class UNet(nn.Module):
    """Ronneberger et al. 2015, padded, normalised by batch; `base` channels, doubled four times."""

    def __init__(self, base: int = 16, outputs: int = 2) -> None:
        super().__init__()
        channels = [base * 2**level for level in range(5)]
        self.down = nn.ModuleList(
            convolved(*pair) for pair in zip([3, *channels], channels, strict=False)
        )
        rising = list(zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(*pair, 2, 2) for pair in rising)
        self.join = nn.ModuleList(convolved(before, after) for before, after in rising)
        self.out = nn.Conv2d(base, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = images.contiguous(memory_format=torch.channels_last)
        skips = []
        for level, convolve in enumerate(self.down):
            maps = convolve(nn.functional.max_pool2d(maps, 2) if level else maps)
            skips.append(maps)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            maps = join(torch.cat([up(maps), skips.pop()], 1))
        return self.out(maps)


def convolved(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [
            nn.Conv2d(channels, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def train_unet(sets: dict[str, LabelledNuclei], folder: Path) -> UNet:
    """Train with the recipe of `nuclei`: split, augmentation, epochs, optimiser, choice."""
    project = read_project("nuclei")
    torch.manual_seed(project.seed)
    model = UNet()
    (phase,) = project.phases
    task = nuclei_task(sets, project.augmentation, phase, project.seed)
    fit(model, task, phase, folder)
    return model


def unet(data: Path, folder: Path) -> None:
    """Measure a U-Net, its thresholds chosen as those of `nuclei`."""
    sets = read_nuclei(data)
    model = train_unet(sets, folder)
    normalised = Normalisation.of(sets["train"])
    config = tuned(predicted(model, sets["val"], normalised), sets["val"].labels)
    test = sets["test"]
    figures = nuclei_figures(predicted(model, test, normalised), test.labels, config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    show(model="unet", parameters=parameters, config=dataclasses.asdict(config), figures=figures)


def modes(data: Path, model: Path, folder: Path, split: Path) -> None:
    """Compare whole images and tiles on one image whose parts are the images of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    test = read_nuclei(data)[str(split)]
    image, places = mosaic(test)
    path = folder / "mosaic.tif"
    tifffile.imwrite(path, image, photometric="rgb", tile=(256, 256), compression="deflate")
    for mode in ("tiles", "whole"):
        config = RunConfig(
            model=str(model), mode=mode, read_all=True, source_spacing=(SPACING, SPACING)
        )
        store = folder / f"{mode}.gigavim.zarr"
        summary = run_image(str(path), store, config, Resources(device="cpu"), force=True)
        assert summary.geojson is not None
        found = drawn(Path(summary.geojson), image.shape[:2])
        scores = {"dice": dice, "aji": aggregated_jaccard}
        figures = {
            name: bootstrap(
                np.array(
                    [
                        score(truth, found[there])
                        for truth, there in zip(test.labels, places, strict=True)
                    ]
                )
            )
            for name, score in scores.items()
        }
        show(mode=mode, split=str(split), nuclei=summary.nuclei, figures=figures)


def mosaic(test: LabelledNuclei) -> tuple[NDArray[np.uint8], list[tuple[slice, slice]]]:
    """Put images in as many rows as columns, or nearly; empty places repeat the first image."""
    count, height, width = test.pixels.shape[:3]
    columns = int(np.ceil(np.sqrt(count * height / width)))
    rows = -(-count // columns)
    image = np.tile(test.pixels[0], (rows, columns, 1))
    places = []
    for number, pixels in enumerate(test.pixels):
        y, x = number // columns * height, number % columns * width
        there = (slice(y, y + height), slice(x, x + width))
        image[there] = pixels
        places.append(there)
    return image, places


def drawn(geojson: Path, shape: tuple[int, int]) -> NDArray[np.int32]:
    """Fill outlines with the number of their nucleus."""
    from rasterio.features import rasterize

    features = json.loads(geojson.read_text())["features"]
    shapes = [(feature["geometry"], number) for number, feature in enumerate(features, 1)]
    return np.asarray(rasterize(shapes, shape, dtype="int32"))


def show(figures: dict[str, Figure], **facts: Any) -> None:
    print(json.dumps(facts | {name: dataclasses.asdict(each) for name, each in figures.items()}))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    {"unet": unet, "modes": modes}[sys.argv[1]](*map(Path, sys.argv[2:]))
