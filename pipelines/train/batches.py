"""Batches in an order, and with changes, that follow from the seed and their place in the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gigavim.pipelines.train.augment import Augmentation

Batch = tuple[Tensor, Tensor]
"""What the model takes, and what it is to make of it."""


@dataclass(frozen=True)
class Labelled:
    """Images that are normalised, and their classes."""

    pixels: NDArray[Any]
    """As stored, shape (n, h, w, band)."""
    labels: NDArray[np.int64]
    """Shape (n,)."""
    classes: int
    scale: float
    mean: tuple[float, ...]
    """Per band, after `scale`."""
    std: tuple[float, ...]

    def images(self, rows: NDArray[np.int64]) -> Tensor:
        """Return some, before they are normalised, shape (b, band, h, w)."""
        values = np.ascontiguousarray(self.pixels[rows].transpose(0, 3, 1, 2))
        return torch.from_numpy(values).float() * self.scale

    def normalised(self, images: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation of each band."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def targets(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the probabilities of the classes, shape (b, K)."""
        labels = torch.from_numpy(self.labels[rows])
        return torch.nn.functional.one_hot(labels, self.classes).float()


class TrainingBatches:
    """All rows of a set in a new order each epoch, changed at random.

    It tells Lightning where it is, and goes on from there (`state_dict`, `load_state_dict`).

    Parameters
    ----------
    rank, ranks
        Which of how many processes this is; each has its share of every batch.
    """

    def __init__(
        self,
        data: Labelled,
        augmentation: Augmentation,
        batch: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.data, self.augmentation, self.batch, self.seed = data, augmentation, batch, seed
        self.rank, self.ranks = rank, ranks
        self.epoch = self.number = 0

    def __len__(self) -> int:
        """Batches in an epoch; the last few rows of an order may be left out."""
        return max(1, len(self.data.labels) // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        if self.number == len(self):
            self.epoch, self.number = self.epoch + 1, 0
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.data.labels))
        for number in range(self.number, len(self)):
            # Where the run is once this batch is trained on, and a checkpoint may be written.
            self.number = number + 1
            rows = order[number * self.batch : (number + 1) * self.batch][self.rank :: self.ranks]
            yield self._changed(rows, number)

    def _changed(self, rows: NDArray[np.int64], number: int) -> Batch:
        data, augmentation, generator = self.data, self.augmentation, self._generator(number)
        images = data.normalised(augmentation.change(data.images(rows), generator))
        return augmentation.hide(images, data.targets(rows), generator)

    def _generator(self, number: int) -> torch.Generator:
        """Return what changes a batch of this epoch at random."""
        place = np.random.SeedSequence([self.seed, self.epoch, number, self.rank])
        return torch.Generator().manual_seed(int(place.generate_state(1)[0]))

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its batches were taken."""
        return {"epoch": self.epoch, "number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.epoch, self.number = state["epoch"], state["number"]


@dataclass(frozen=True)
class PlainBatches:
    """All rows of a set in their order, unchanged."""

    data: Labelled
    batch: int

    def __len__(self) -> int:
        return -(-len(self.data.labels) // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        every = np.arange(len(self.data.labels))
        for start in range(0, len(every), self.batch):
            rows = every[start : start + self.batch]
            yield self.data.normalised(self.data.images(rows)), self.data.targets(rows)
