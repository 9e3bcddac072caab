"""Nuclei, pixel by pixel: images with instance labels, what is learned of them, and how well."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from gigavim.dense import Decoder, DecoderConfig
from gigavim.encoder import VisionMamba, VisionMambaConfig
from gigavim.errors import GigavimError
from gigavim.nuclei import OUTPUTS, NucleiConfig, depth_of
from gigavim.pipelines.train.augment import Augmentation, restained, turned, zoomed
from gigavim.pipelines.train.batches import Batch
from gigavim.pipelines.train.dense_augment import counterstained
from gigavim.pipelines.train.dense_metrics import nuclei_metrics
from gigavim.pipelines.train.loop import Task
from gigavim.pipelines.train.project import Phase

CROP = 256
"""Side of what is cut from training images, in pixels."""
MOSAIC = 0.5
"""Share of batches whose crops are joined to wide images, for long sequences as slides have."""
AT_ONCE = 4
"""Images validated together."""


@dataclass(frozen=True)
class LabelledNuclei:
    """Images of one size, and which pixel belongs to which nucleus."""

    names: tuple[str, ...]
    pixels: NDArray[np.uint8]
    """Shape (n, h, w, 3)."""
    labels: NDArray[np.int32]
    """0 outside nuclei, else the number of the nucleus, shape (n, h, w)."""
    domains: tuple[str, ...]
    """How each was stained and taken."""

    def chances(self) -> NDArray[np.float64]:
        """Return how often each is drawn: a domain by the square root of its size."""
        sizes = np.array([self.domains.count(domain) for domain in self.domains])
        weights = sizes**-0.5
        return np.asarray(weights / weights.sum())

    def targets(self) -> Tensor:
        """Return nucleus, depth and label of every pixel, shape (n, 3, h, w)."""
        depth = np.stack([depth_of(labels) for labels in self.labels])
        values = np.stack([self.labels > 0, depth, self.labels], 1).astype(np.float32)
        return torch.from_numpy(values)


def read_nuclei(folder: Path) -> dict[str, LabelledNuclei]:
    """Read ``images/ID.png``, ``labels/ID.png`` and ``index.csv``: ``id``, ``split``, ``domain``.

    Returns
    -------
    sets
        By split: ``train``, ``val`` and ``test``.

    Raises
    ------
    GigavimError
        If a file is missing or cannot be read, images differ in size, or a split is empty.
    """
    from skimage.io import imread

    try:
        with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        sets = {}
        for split in ("train", "val", "test"):
            names = tuple(row["id"] for row in rows if row["split"] == split)
            if not names:
                raise GigavimError(f"{folder}/index.csv has no image of the split {split!r}")
            pixels = [imread(folder / "images" / f"{name}.png")[..., :3] for name in names]
            labels = [imread(folder / "labels" / f"{name}.png") for name in names]
            for name, image, label in zip(names, pixels, labels, strict=True):
                if image.shape[:2] != label.shape or image.shape != pixels[0].shape:
                    raise GigavimError(
                        f"{folder}: {name} is {image.shape[:2]}, its labels {label.shape}, and the "
                        f"first image {pixels[0].shape[:2]}; they must be of one size"
                    )
            domains = tuple(row.get("domain", "") for row in rows if row["split"] == split)
            sets[split] = LabelledNuclei(
                names, np.stack(pixels), np.stack(labels).astype(np.int32), domains
            )
    except (OSError, KeyError) as error:
        raise GigavimError(
            f"{folder} is no set of nuclei ({error}); see docs/training.md for its layout"
        ) from error
    return sets


class DenseModel(nn.Module):
    """Encoder and decoder as one, for training: images to logits of every pixel."""

    def __init__(self, architecture: VisionMambaConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        self.encoder = VisionMamba(architecture)
        self.decoder = Decoder(architecture, decoder)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (b, output, h, w), of normalised images of whole patches."""
        patch = self.encoder.config.patch
        patches = images.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 4, 5, 1)
        tokens = self.encoder.embed(patches)  # (b, row, column, D)
        rows, columns = tokens.shape[1:3]
        position = self.encoder.position_for(rows, columns)
        features = self.encoder.mix(tokens.flatten(1, 2), position).tokens
        grid = features.view(len(images), rows, columns, -1).permute(0, 3, 1, 2)
        logits: Tensor = self.decoder(images, grid)
        return logits


class CropBatches:
    """Crops drawn anew each epoch, changed at random, at times joined to wide images.

    Every batch follows from the seed and its place in the run, as those of `TrainingBatches`.
    """

    def __init__(
        self,
        data: LabelledNuclei,
        normalised: Normalisation,
        augmentation: Augmentation,
        batch: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.images = torch.from_numpy(data.pixels).permute(0, 3, 1, 2)
        self.targets = data.targets()[:, :2]
        self.chances = data.chances()
        self.normalised, self.augmentation = normalised, augmentation
        self.batch, self.seed, self.rank, self.ranks = batch, seed, rank, ranks
        self.epoch = self.number = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return max(1, len(self.images) // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        if self.number == len(self):
            self.epoch, self.number = self.epoch + 1, 0
        count = len(self.images)
        order = np.random.default_rng([self.seed, self.epoch]).choice(count, count, p=self.chances)
        for number in range(self.number, len(self)):
            self.number = number + 1
            rows = order[number * self.batch : (number + 1) * self.batch][self.rank :: self.ranks]
            place = np.random.SeedSequence([self.seed, self.epoch, number, self.rank])
            yield self._crops(rows, np.random.default_rng(place))

    def _crops(self, rows: NDArray[np.int64], random: np.random.Generator) -> Batch:
        height, width = self.images.shape[2:]
        generator = Generator().manual_seed(int(random.integers(2**31)))
        crops = []
        for row in rows:
            y, x = (int(random.integers(side - CROP + 1)) for side in (height, width))
            cut = np.s_[row, :, y : y + CROP, x : x + CROP]
            crops.append(torch.cat([self.images[cut] / 255, self.targets[cut]]))
        # Images and targets are turned and resized as one.
        both = zoomed(turned(torch.stack(crops), generator), self.augmentation.zoom, generator)
        images = counterstained(both[:, :3].clamp(0, 1), both[:, 3].clamp(0, 1), generator)
        images = restained(images, self.augmentation.stain, generator)
        wide = 2 ** int(random.integers(1, 4)) if random.random() < MOSAIC else 1
        joined = _joined(torch.cat([self.normalised(images), both[:, 3:].clamp(0, 1)], 1), wide)
        return joined[:, :3], joined[:, 3:]

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its batches were taken."""
        return {"epoch": self.epoch, "number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.epoch, self.number = state["epoch"], state["number"]


@dataclass(frozen=True)
class Normalisation:
    """What is subtracted and divided by, per band, of pixels from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: LabelledNuclei) -> Normalisation:
        """Measure images."""
        values = data.pixels.reshape(-1, data.pixels.shape[-1]) / 255
        mean, std = values.mean(0), values.std(0)
        return cls(tuple(map(float, mean)), tuple(map(float, std)))

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise, shape (b, band, h, w)."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std


@dataclass(frozen=True)
class WholeImages:
    """Images as they are, with their nuclei."""

    data: LabelledNuclei
    normalised: Normalisation

    def __iter__(self) -> Iterator[Batch]:
        images = torch.from_numpy(self.data.pixels).permute(0, 3, 1, 2)
        targets = self.data.targets()
        for start in range(0, len(images), AT_ONCE):
            cut = slice(start, start + AT_ONCE)
            yield self.normalised(images[cut] / 255), targets[cut]


def nuclei_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return cross entropy and Dice loss of the nuclei, and twice the cross entropy of the depth.

    Depth is learnt as a probability: it is 0 to 1, and errors near its ends count more.
    """
    nucleus, depth = logits[:, 0].float(), logits[:, 1].float()
    probs, truth = nucleus.sigmoid(), targets[:, 0]
    overlap = (2 * (probs * truth).sum() + 1) / (probs.sum() + truth.sum() + 1)
    entropy = nn.functional.binary_cross_entropy_with_logits
    return entropy(nucleus, truth) + (1 - overlap) + 2 * entropy(depth, targets[:, 1])


def nuclei_task(
    sets: dict[str, LabelledNuclei], augmentation: Augmentation, phase: Phase, seed: int
) -> Task:
    """Return the task of finding nuclei and telling them apart."""
    normalised = Normalisation.of(sets["train"])
    return Task(
        training=partial(CropBatches, sets["train"], normalised, augmentation, phase.batch, seed),
        validation=WholeImages(sets["val"], normalised),
        loss=nuclei_loss,
        metrics=nuclei_metrics(NucleiConfig()),
        monitor="aji",
    )


def new_model(architecture: VisionMambaConfig, seed: int) -> DenseModel:
    """Return a model with random weights."""
    torch.manual_seed(seed)
    return DenseModel(architecture, DecoderConfig(OUTPUTS))


def _joined(images: Tensor, wide: int) -> Tensor:
    """Put ``wide`` images side by side, as far as their number allows."""
    while len(images) % wide:
        wide //= 2
    return torch.cat([images[first::wide] for first in range(wide)], -1)
